"""Results in files: what is written is read back the same, whole or not at all."""

import builtins
import json
import resource

import numpy as np
import pytest
from guest import CR3, guest, write_image
from typer.testing import CliRunner

import gpuhmm
from gpuhmm.cli import app
from gpuhmm.hmm.runs import RUN_DTYPE, runs_of_words
from gpuhmm.results import device_columns, read_results, whole_file, write_results
from gpuhmm.results.files import run_table, word_table, word_table_of_runs

BASE = 1 << 40


@pytest.fixture(scope="module")
def words():
    """Return the recorded words of the guest."""
    return guest().hmm_pfns


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_words_and_runs_come_back(words, suffix, tmp_path):
    runs = runs_of_words(BASE, words)
    halves = [runs[: len(runs) // 2], runs[len(runs) // 2 :]]
    for table in (word_table(BASE, words), runs, run_table(halves), run_table([])):
        path = tmp_path / f"out{suffix}"
        write_results(
            path,
            table,
            summary={"pages": len(words)},
            names=["one", "tw\N{LATIN SMALL LETTER O WITH DIAERESIS}"],
        )
        again = read_results(path)
        assert again.dtype == table.dtype
        assert np.array_equal(again, table)
    assert np.array_equal(word_table_of_runs(halves, "v5.18"), word_table(BASE, words))
    assert list(tmp_path.iterdir()) == [path]


def test_parquet_is_compact_and_names_mappings(words, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = run_table([runs_of_words(BASE, words), runs_of_words(BASE << 1, words)])
    summary = {"pages": 5, "mappings": [1, 2, 3]}
    write_results(tmp_path / "out.parquet", table, summary=summary, names=["[heap]", "/lib/x.so"])
    assert (tmp_path / "out.parquet").stat().st_size < table.nbytes / 8
    read = parquet.read_table(tmp_path / "out.parquet")
    assert set(read["name"].to_pylist()) == {"[heap]", "/lib/x.so"}
    assert read["valid"].to_pylist()[:3] == ((table["flags"] & gpuhmm.HMM_PFN_VALID) != 0).tolist()[:3]
    assert json.loads(read.schema.metadata[b"gpuhmm"]) == {"pages": 5}
    whole = word_table(BASE, words)
    write_results(tmp_path / "words.parquet", whole)
    assert (tmp_path / "words.parquet").stat().st_size < whole.nbytes / 8


def test_json_takes_the_summary(tmp_path):
    write_results(tmp_path / "out.json", np.empty(0, dtype=RUN_DTYPE), summary={"pages": 5})
    assert json.loads((tmp_path / "out.json").read_text()) == {"pages": 5}
    with pytest.raises(ValueError, match="no table"):
        read_results(tmp_path / "out.json")


def test_a_file_appears_whole_or_not_at_all(words, tmp_path):
    path = tmp_path / "out.npy"
    path.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="was not written"):
            write_results(path, word_table(BASE, words))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt), whole_file(path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="cannot be written"):
        write_results(tmp_path / "nowhere" / "out.npy", word_table(BASE, words[:5]))


def test_what_cannot_be_written_is_said_first(words, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="must end in one of"):
        write_results(tmp_path / "out.csv", word_table(BASE, words))
    many = np.zeros(1, dtype=RUN_DTYPE)
    many["npages"] = 1 << 40
    with pytest.raises(ValueError, match="at most"):
        word_table_of_runs([many], "v5.18")
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"gpuhmm\[out\]"):
        write_results(tmp_path / "out.parquet", word_table(BASE, words))


def test_device_columns_need_a_device(words, monkeypatch):
    try:
        gpuhmm.resolve_backend("cuda")
    except gpuhmm.BackendError:
        with pytest.raises(gpuhmm.BackendError):
            device_columns(word_table(BASE, words))
    else:
        columns = device_columns(word_table(BASE, words))
        assert np.array_equal(columns["hmm_pfn"].copy_to_host(), words)


def test_the_command_writes_what_it_walked(tmp_path):
    image = write_image(guest(), tmp_path / "memory.raw")
    dump = ["walk", "--dump", str(image), "--cr3", hex(CR3), "--backend", "cpu"]
    seen = {}
    for name, more in (
        ("runs.npy", []),
        ("words.npy", ["--words"]),
        ("runs.parquet", []),
        ("sum.json", []),
    ):
        ran = CliRunner().invoke(app, [*dump, "--json", "--out", str(tmp_path / name), *more])
        assert ran.exit_code == 0, ran.output
        seen[name] = ran.stdout
    runs = read_results(tmp_path / "runs.npy")
    assert np.array_equal(runs, read_results(tmp_path / "runs.parquet"))
    assert len(read_results(tmp_path / "words.npy")) == runs["npages"].sum()
    assert json.loads((tmp_path / "sum.json").read_text()) == json.loads(seen["sum.json"])
    assert CliRunner().invoke(app, [*dump, "--words"]).exit_code == 2
