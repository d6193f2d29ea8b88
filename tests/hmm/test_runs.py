"""Runs stand for the words, bit for bit, and cost what the page tables hold."""

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs_against_words import runs_and_words
from spaces import BASE, RW, anonymous, words

import gpuhmm
from gpuhmm.check.random_case import random_case
from gpuhmm.hmm.runs import RUN_DTYPE

BACKENDS = ["reference", "cpu"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_expand_to_the_words(backend):
    for seed in range(400):
        runs_and_words(random_case(random.Random(seed), f"random case {seed}", max_pages=4096), backend)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from([0, 1, 2, 1 << 61, (1 << 63) | 5, (1 << 63) | 6, (9 << 56), (9 << 56) | 1])))
def test_expanding_runs_of_words_gives_the_words(values):
    given_words = np.array(values, dtype=np.uint64)
    runs = gpuhmm.runs_of_words(0x1000, given_words)
    assert np.array_equal(gpuhmm.expand_runs(runs), given_words)
    assert runs["npages"].sum() == len(values)


def test_a_whole_address_space_is_one_call(backend):
    mm = gpuhmm.AddressSpace(levels=5)
    mm.mmap(0, 1 << 57)
    mm.map_pfns(5 << 50, words(100, 101, 102, 200))
    seen = gpuhmm.range_runs(mm, 0, 1 << 57, backend=backend)
    assert seen.runs["npages"].tolist() == [5 << 38, 3, 1, (1 << 45) - (5 << 38) - 4]
    assert seen.runs["pfn"].tolist() == [0, 100, 200, 0]
    assert seen.runs["va"][1] == 5 << 50


def test_faults_and_errors_end_runs_where_they_end_words(backend):
    mm = anonymous(16)
    seen = gpuhmm.range_runs(mm, BASE, BASE + 16 * 4096, request="write", backend=backend)
    assert seen.stats.faults == 16
    assert seen.runs["npages"].sum() == 16
    assert (seen.runs["flags"] == gpuhmm.HMM_PFN_VALID | gpuhmm.HMM_PFN_WRITE).all()
    beyond = gpuhmm.HmmRuns(mm.notifier(BASE, BASE + (20 << 12)), BASE, BASE + (20 << 12))
    beyond.notifier_seq = beyond.notifier.read_begin()
    beyond.default_flags = int(gpuhmm.HMM_PFN_REQ_FAULT)
    assert gpuhmm.hmm_range_fault_runs(beyond, backend) == -14
    assert beyond.runs["npages"].sum() == 16


def test_a_huge_page_of_pfn_zero_that_no_device_may_read(backend):
    # Its words count up from 0, which by itself would be a hole.
    mm = gpuhmm.AddressSpace()
    mm.mmap(1 << 30, (1 << 30) + (4 << 20), RW)
    mm.make_tables(1 << 30, 2)
    mm.set_entry(1 << 30, 2, (~0 & 0xF_FFFF_FFE0_0000) | 1 << 8 | 1 << 7)
    seen = gpuhmm.range_runs(mm, 1 << 30, (1 << 30) + (4 << 20), backend=backend)
    assert seen.runs["npages"].tolist() == [1, 511, 512]
    assert seen.runs["pfn"].tolist() == [0, 1, 0]


def test_bad_input(backend):
    mm = anonymous(4)
    notifier = mm.notifier(BASE, BASE + 4 * 4096)
    with pytest.raises(ValueError, match="page aligned"):
        gpuhmm.HmmRuns(notifier, BASE + 1, BASE + 4096)
    with pytest.raises(ValueError, match="must not lie above end"):
        gpuhmm.HmmRuns(notifier, BASE + 4096, BASE)
    empty = gpuhmm.HmmRuns(notifier, BASE, BASE, notifier_seq=notifier.read_begin())
    assert gpuhmm.hmm_range_fault_runs(empty, backend) == -22
    assert empty.runs.dtype == RUN_DTYPE
    stale = gpuhmm.HmmRuns(notifier, BASE, BASE + 4096, notifier_seq=notifier.read_begin())
    notifier.invalidate()
    assert gpuhmm.hmm_range_fault_runs(stale, backend) == -16
