"""Words under both layouts: orders, PFNs, flags and runs; words of the wrong kernel are refused."""

import numpy as np
import pytest
from spaces import BASE, RW, words

import gpuhmm
from gpuhmm.check.difference import hmm_pfn_words
from gpuhmm.hmm.words import word_layout
from gpuhmm.results import read_results, write_results
from gpuhmm.results.files import word_table, word_table_of_runs

VALID, WRITE = int(gpuhmm.HMM_PFN_VALID), int(gpuhmm.HMM_PFN_WRITE)
MAPPED = int(gpuhmm.HMM_PFN_DMA_MAPPED)

#: include/linux/hmm.h of each: where the order begins, HMM_PFN_FLAGS.
OLD, NEW = ("v5.18", "v6.1", "v6.12"), ("v6.17", "v6.18", "v7.0", "v7.3")
SHIFTS = {**dict.fromkeys(OLD, 56), **dict.fromkeys(NEW, 53)}


def test_the_bits_are_those_of_the_header():
    assert (gpuhmm.HMM_PFN_DMA_MAPPED, gpuhmm.HMM_PFN_P2PDMA, gpuhmm.HMM_PFN_P2PDMA_BUS) == (
        1 << 60,
        1 << 59,
        1 << 58,
    )
    assert {gpuhmm.PROFILES[name].hmm_pfn_flags for name in OLD} == {0xFF << 56}
    assert {gpuhmm.PROFILES[name].hmm_pfn_flags for name in NEW} == {(1 << 64) - (1 << 53)}
    assert {gpuhmm.PROFILES[name].hmm_pfn_sticky for name in OLD} == {0}
    assert {gpuhmm.PROFILES[name].hmm_pfn_sticky for name in NEW} == {7 << 58}


@pytest.mark.parametrize("kernel", gpuhmm.PROFILES)
def test_parts_of_a_word(kernel):
    layout = word_layout(kernel)
    assert layout.order_shift == SHIFTS[kernel]
    assert layout.pfn | layout.flags | layout.order == (1 << 64) - 1
    assert layout.pfn & layout.flags == layout.pfn & layout.order == layout.flags & layout.order == 0
    made = words(0, VALID | 5, VALID | 9 << SHIFTS[kernel] | 512, 18 << SHIFTS[kernel])
    orders = gpuhmm.hmm_pfn_to_order(made, kernel)
    assert orders.tolist() == [0, 0, 9, 18]
    assert orders.dtype == np.uint8
    assert (made & layout.pfn).tolist() == [0, 5, 512, 0]


@pytest.mark.parametrize("order", [9, 18])
def test_words_of_the_other_layout_are_refused(order):
    old, new = words(0, VALID | order << 56), words(0, VALID | order << 53)
    with pytest.raises(ValueError, match=r"words of v6\.17 must have order 0, 9 or 18 at bit 53 \(got order"):
        gpuhmm.hmm_pfn_to_order(old, "v6.17")
    with pytest.raises(ValueError, match=r"words of v5\.18 must have order 0, 9 or 18 at bit 56 \(got order"):
        gpuhmm.hmm_pfn_to_order(new)
    with pytest.raises(ValueError, match="another kernel"):
        gpuhmm.runs_of_words(BASE, old, "v7.3")


@pytest.mark.parametrize("kernel", ["v6.1", "v6.17"])
def test_a_mirrored_range_reads_its_kernels_words(kernel):
    mm = gpuhmm.AddressSpace(kernel=kernel)
    mm.mmap(BASE, BASE + (2 << 21), RW)
    mm.map_pfns(BASE, words(512), level=2)
    mm.map_pfns(BASE + (1 << 21), words(7))
    seen = gpuhmm.range_fault(mm, BASE, BASE + (1 << 21) + 8192, backend="reference")
    assert int(seen.hmm_pfns[1]) == VALID | WRITE | 9 << SHIFTS[kernel] | 513
    assert seen.kernel is gpuhmm.PROFILES[kernel]
    assert seen.orders.tolist() == [9] * 512 + [0, 0]
    assert seen.pfns[[0, 511, 512, 513]].tolist() == [512, 1023, 7, 0]
    runs = seen.runs()
    assert runs["npages"].tolist() == [512, 1]
    assert runs["order"].tolist() == [9, 0]
    assert runs["flags"].tolist() == [VALID | WRITE] * 2
    whole = gpuhmm.range_runs(mm, BASE, BASE + (1 << 21) + 8192, backend="reference")
    assert np.array_equal(gpuhmm.expand_runs(whole.runs, whole.kernel), seen.hmm_pfns)
    assert np.array_equal(word_table_of_runs([whole.runs], kernel), word_table(BASE, seen.hmm_pfns))


def test_what_the_caller_mapped_is_a_flag_of_a_run(tmp_path):
    made = words(VALID | 5, VALID | MAPPED | 6, VALID | MAPPED | 7, MAPPED, MAPPED)
    runs = gpuhmm.runs_of_words(BASE, made, "v6.17")
    assert runs["npages"].tolist() == [1, 2, 2]
    assert runs["pfn"].tolist() == [5, 6, 0]
    assert runs["flags"].tolist() == [VALID, VALID | MAPPED, MAPPED]
    assert np.array_equal(gpuhmm.expand_runs(runs, "v6.17"), made)
    pytest.importorskip("pyarrow.parquet")
    write_results(tmp_path / "runs.parquet", runs)
    assert np.array_equal(read_results(tmp_path / "runs.parquet"), runs)


def test_a_word_in_words_is_of_its_kernel():
    word = np.uint64(VALID | MAPPED | 9 << 53 | 0x200)
    assert hmm_pfn_words(word, "v6.17") == "pfn 0x200 VALID DMA_MAPPED order 9"
    assert hmm_pfn_words(np.uint64(VALID | 9 << 56 | 0x200), "v6.12") == "pfn 0x200 VALID order 9"
