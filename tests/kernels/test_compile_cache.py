"""The cache of compiled code never hands out what was compiled from something else."""

from numba import njit

from gpuhmm.kernels.compile_cache import cached


def add_one(value):
    return value + 1


def test_sequential_and_parallel_code_of_one_function_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("gpuhmm.kernels.compile_cache.cache_folder", lambda: str(tmp_path))
    sequential = cached(njit(add_one))
    assert sequential(1) == 2
    again, other = cached(njit(add_one)), cached(njit(add_one, nogil=True))
    assert again(1) == other(1) == 2
    assert sum(again.stats.cache_hits.values()) == 1
    assert not other.stats.cache_hits
