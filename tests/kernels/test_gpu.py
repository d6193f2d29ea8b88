"""On a CUDA device: everything recorded, random cases, and a range that the simulator cannot hold."""

import random

import numpy as np
import pytest
from cuda_device import device, part_of, random_seeds, whole  # noqa: F401
from recorded import CASES, difference_from_record, large_sets

import gpuhmm
from gpuhmm.check import vectors
from gpuhmm.check.difference import differences
from gpuhmm.check.random_case import random_case
from gpuhmm.check.replay import replay

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_case_is_as_recorded(path):
    wrong = {
        case.name: found
        for case in part_of(vectors.load(path))
        if (found := difference_from_record(case, "cuda"))
    }
    assert not wrong


def test_every_case_of_the_larger_sets_is_as_recorded():
    for path in sorted(large_sets().glob("*.npz")):
        for case in part_of(vectors.load(path)):
            assert not difference_from_record(case, "cuda"), case.name


def test_random_cases_give_what_the_reference_gives():
    for seed in random_seeds(1000 if whole() else 30, 20_000):
        case = random_case(random.Random(seed), f"random case {seed}")
        found = differences(case, "reference", replay(case, "reference"), "cuda", replay(case, "cuda"))
        assert not found, (case.name, found)


@pytest.mark.parametrize("request_", ["none", "read"])
def test_a_large_range_gives_what_the_cpu_gives(request_):
    mm = gpuhmm.AddressSpace()
    base, npages = 1 << 40, 1 << 22
    mm.mmap(base, base + npages * 4096)
    mm.map_pfns(base, np.random.default_rng(1).integers(0, 1 << 40, npages, dtype=np.uint64))
    seen = [
        gpuhmm.range_fault(mm, base, base + npages * 4096, request=request_, backend=backend).hmm_pfns
        for backend in ("cpu", "cuda")
    ]
    assert np.array_equal(*seen)


def test_a_device_array_is_walked_in_place():
    from numba import cuda

    mm = gpuhmm.AddressSpace()
    mm.mmap(0x10000, 0x14000)
    mm.map_pfns(0x10000, np.arange(5, 9, dtype=np.uint64))
    on_device = cuda.to_device(np.zeros(4, dtype=np.uint64))
    notifier = mm.notifier(0x10000, 0x14000)
    range_ = gpuhmm.HmmRange(notifier, 0x10000, 0x14000, on_device, notifier_seq=notifier.read_begin())
    assert gpuhmm.hmm_range_fault(range_, backend="cuda") == 0
    assert (on_device.copy_to_host() & ~gpuhmm.HMM_PFN_FLAGS).tolist() == [5, 6, 7, 8]
