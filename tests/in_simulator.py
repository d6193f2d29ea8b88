"""What ``test_simulator.py`` runs with NUMBA_ENABLE_CUDASIM=1: the CUDA entry points as plain Python."""

import numpy as np
import pytest
import test_hmm_selftests as selftests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba.core import config
from recorded import CASES, difference_from_record
from selftest_process import Process
from spaces import BASE, RW, anonymous, ask, words

import gpuhmm
from gpuhmm.check import vectors
from gpuhmm.check.difference import differences
from gpuhmm.check.random_case import random_case
from gpuhmm.check.replay import replay
from gpuhmm.kernels.device_tables import device_tables

MAX_PAGES = 256
MAX_EVENTS = 1200

assert config.ENABLE_CUDASIM


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_small_recorded_cases(path):
    small = [
        case
        for case in vectors.load(path)
        if case.npages <= MAX_PAGES and len(case.recorded.events) <= MAX_EVENTS
    ]
    assert len(small) > 20
    wrong = {case.name: found for case in small if (found := difference_from_record(case, "cuda"))}
    assert not wrong


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.randoms(use_true_random=False))
def test_random_cases(rng):
    case = random_case(rng, "steered by hypothesis", max_pages=64)
    assert not differences(case, "reference", replay(case, "reference"), "cuda", replay(case, "cuda"))


def test_only_changed_tables_are_sent_again():
    mm = gpuhmm.AddressSpace()
    base = 1 << 40
    npages = 4 * 512
    mm.mmap(base, base + npages * 4096, RW)
    mm.map_pfns(base, np.arange(1, npages + 1, dtype=np.uint64))
    assert ask(mm, base, npages, "cuda")[0] == 0
    mirror = device_tables(mm)
    before, transfers = mirror.sent, mirror.transfers
    assert ask(mm, base, npages, "cuda")[0] == 0
    assert (mirror.sent, mirror.transfers) == (before, transfers)
    mm.set_entry(base + 513 * 4096, 1, 0)
    ret, range_ = ask(mm, base, npages, "cuda")
    assert ret == 0
    assert range_.hmm_pfns[513] == 0
    assert (mirror.sent, mirror.transfers) == (before + 1, transfers + 1)


def test_a_device_array_is_walked_in_place():
    from numba import cuda

    mm = anonymous(4)
    mm.map_pfns(BASE, words(5, 6, 7, 8))
    on_device = cuda.to_device(np.zeros(4, dtype=np.uint64))
    notifier = mm.notifier(BASE, BASE + 4 * 4096)
    # The simulator's arrays have no __cuda_array_interface__ of their own.
    if not hasattr(on_device, "__cuda_array_interface__"):
        pytest.skip("arrays of the simulator lack __cuda_array_interface__")
    range_ = gpuhmm.HmmRange(notifier, BASE, BASE + 4 * 4096, on_device, notifier_seq=notifier.read_begin())
    assert gpuhmm.hmm_range_fault(range_, backend="cuda") == 0
    assert (on_device.copy_to_host() & ~gpuhmm.HMM_PFN_FLAGS).tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("coherent", [False, True], ids=["private", "coherent"])
@pytest.mark.parametrize(
    "scenario",
    [
        selftests.test_one_zero_page_costs_one_retry,
        selftests.test_migrate_mixed,
        selftests.test_mixedmap,
        selftests.test_snapshot,
        selftests.test_exclusive_mprotect,
        selftests.test_hmm_gup_test,
        selftests.test_hmm_cow_in_device,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_scenarios_of_the_kernels_selftest(scenario, coherent):
    process = Process("v6.1", "cuda", coherent)
    scenario(process)
    process.check()


@pytest.mark.parametrize("kernel", ["v5.18", "v6.1"])
def test_two_devices_in_the_simulator(kernel):
    selftests.test_double_map(Process(kernel, "cuda"))


def test_the_back_end_says_that_it_is_the_simulator():
    assert gpuhmm.resolve_backend("cuda").device == "CUDA simulator"
