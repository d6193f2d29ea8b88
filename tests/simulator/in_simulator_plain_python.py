"""What ``test_simulator.py`` runs with NUMBA_ENABLE_CUDASIM=1: kernels as plain Python over NumPy's numbers.

The PTX machine runs what was compiled; only here does NumPy warn of unsigned arithmetic that wraps, and
does the CUDA back end run where nothing compiles.  Each entry point is met once or a few times.
"""

import random

import numpy as np
import pytest
from batch_against_calls import batch_and_calls
from fault_traces import random_trace
from numba.core import config
from recorded import CASES, difference_from_record
from runs_against_words import runs_and_words
from spaces import BASE, RW, ask, words
from table_images import interesting_addresses, loaded, random_image

import gpuhmm
from gpuhmm.check import vectors
from gpuhmm.check.difference import differences
from gpuhmm.check.random_case import random_case
from gpuhmm.check.replay import replay
from gpuhmm.coalesce.preprocess import coalesce_trace
from gpuhmm.coalesce.preprocess.rules import RULES
from gpuhmm.mm.entry import encode_swap
from gpuhmm.translation import mappings, translate, translate_range

MAX_PAGES = 48
MAX_EVENTS = 60

assert config.ENABLE_CUDASIM


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_small_recorded_cases(path):
    small = [
        case
        for case in vectors.load(path)
        if case.npages <= MAX_PAGES and len(case.recorded.events) <= MAX_EVENTS
    ][::9]
    assert len(small) > (0 if path.stem.startswith("shstk") else 1)
    wrong = {case.name: found for case in small if (found := difference_from_record(case, "cuda"))}
    assert not wrong


def test_random_cases():
    for seed in range(5000, 5020):
        case = random_case(random.Random(seed), f"random case {seed}", max_pages=64)
        found = differences(case, "reference", replay(case, "reference"), "cuda", replay(case, "cuda"))
        assert not found, (case.name, found)


@pytest.mark.parametrize(
    "request_", [{}, {"pfn_flags_mask": int(gpuhmm.HMM_PFN_REQ_FAULT)}], ids=["none", "by page"]
)
def test_whole_slots_are_streamed_and_give_the_same(request_):
    mm = gpuhmm.AddressSpace()
    mm.mmap(BASE, BASE + (3 << 21), RW)
    mm.map_pfns(BASE, np.arange(1 << 20, (1 << 20) + 1024, dtype=np.uint64))
    mm.map_pfns(BASE + (2 << 21), words(1 << 21), level=2)
    mm.set_entry(BASE + (700 << 12), 1, encode_swap(3, 77))
    seen = [ask(mm, BASE, 1536, backend, **request_) for backend in ("reference", "cuda")]
    assert seen[0][0] == seen[1][0] == 0
    assert np.array_equal(seen[0][1].hmm_pfns, seen[1][1].hmm_pfns)


def test_runs_and_batches():
    for seed in range(8):
        runs_and_words(random_case(random.Random(seed), f"random case {seed}", max_pages=96), "cuda")
        batch_and_calls(random.Random(seed), "cuda", bool(seed & 1), max_pages=200)


def test_translation():
    image = random_image(random.Random(5), tables=4)
    tables = loaded(image)
    vas = interesting_addresses(random.Random(6), image, 100)
    backends = ("reference", "cuda")
    assert np.array_equal(*(translate(tables, vas, backend=backend).words for backend in backends))
    ranges = [translate_range(tables, 0x7F00_001F_0000, 300, backend=backend).words for backend in backends]
    assert np.array_equal(*ranges)
    assert np.array_equal(*(mappings(tables, backend=backend) for backend in ("cpu", "cuda")))


@pytest.mark.parametrize("rules", RULES)
def test_preprocessing(rules):
    trace = random_trace(np.random.default_rng(1), 60, 4, 3, 2)
    seen = [coalesce_trace(trace, 8, None, rules, backend) for backend in ("reference", "cuda")]
    assert seen[0] == seen[1]


def test_the_back_end_says_that_it_is_the_simulator():
    assert gpuhmm.resolve_backend("cuda").device == "CUDA simulator"
