"""Behaviour that the recorded calls do not exercise, on every back end that runs here."""

from errno import EBUSY, EFAULT, EINVAL, EPERM

import numpy as np
import pytest
from spaces import BASE, RW, anonymous, ask, words

import gpuhmm

FAULT = int(gpuhmm.HMM_PFN_REQ_FAULT)
WRITE = int(gpuhmm.HMM_PFN_REQ_WRITE)
ERROR = int(gpuhmm.HMM_PFN_ERROR)


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    return request.param


class Recorder:
    """Maps what is asked for, one page a call, and writes down the calls."""

    def __init__(self, answer=0):
        self.calls = []
        self.answer = answer

    def handle_mm_fault(self, mm, vma, va, flags):
        self.calls.append((va, flags))
        if not self.answer and not mm.entry(va, 1):
            mm.make_tables(va, 1)
            mm.set_entry(va, 1, (va >> 12 & 0xFFFF) << 12 | 0x67)
        return self.answer

    def migration_entry_wait(self, mm, va, level):
        raise AssertionError("no migration here")


def test_an_empty_range_is_einval_after_the_notifier_was_asked(backend):
    mm = anonymous(4)
    assert ask(mm, BASE, 0, backend)[0] == -EINVAL
    ret, range_ = ask(mm, BASE, 0, backend, seq=0)
    assert ret == -EBUSY
    assert range_.stats.walks == 1


def test_a_stale_sequence_changes_nothing(backend):
    words_in = np.arange(4, dtype=np.uint64)
    handler = Recorder()
    ret, range_ = ask(
        anonymous(4, faults=handler), BASE, 4, backend, words_in=words_in, seq=0, default_flags=FAULT
    )
    assert ret == -EBUSY
    assert (range_.hmm_pfns == words_in).all()
    assert not handler.calls


def test_one_missing_page_faults_to_the_end_of_the_extent(backend):
    handler = Recorder()
    mm = anonymous(1024, faults=handler)
    mm.map_pfns(BASE, np.arange(1, 512, dtype=np.uint64))  # the last of 512 is missing
    ret, range_ = ask(mm, BASE, 1024, backend, default_flags=FAULT)
    assert ret == 0
    assert handler.calls == [(BASE + i * 4096, 0x80) for i in range(511, 1024)]
    assert range_.stats.faults == 513
    assert range_.stats.walks == 3


def test_eperm_comes_before_any_call(backend):
    handler = Recorder()
    mm = gpuhmm.AddressSpace(faults=handler)
    mm.mmap(BASE, BASE + 4 * 4096, 1)
    mm.map_pfns(BASE, words(9, 10))
    ret, range_ = ask(mm, BASE, 4, backend, default_flags=FAULT | WRITE)
    assert ret == -EPERM
    assert not handler.calls
    assert not range_.hmm_pfns.any()


def test_an_error_in_mid_burst_keeps_the_inputs_above(backend):
    class Third(Recorder):
        def handle_mm_fault(self, mm, vma, va, flags):
            self.answer = 2 if va == BASE + 5 * 4096 else 0
            return super().handle_mm_fault(mm, vma, va, flags)

    handler = Third()
    mm = anonymous(8, faults=handler)
    mm.map_pfns(BASE, words(1, 2, 3))
    words_in = np.full(8, 0x77, dtype=np.uint64)
    ret, range_ = ask(mm, BASE, 8, backend, words_in=words_in, default_flags=FAULT)
    assert ret == -EFAULT
    assert [va for va, _ in handler.calls] == [BASE + i * 4096 for i in (3, 4, 5)]
    assert range_.hmm_pfns.tolist()[:3] == [pfn | FAULT | WRITE for pfn in (1, 2, 3)]
    assert range_.hmm_pfns.tolist()[3:] == [0x77] * 5


@pytest.mark.parametrize(
    ("levels", "level", "entry"),
    [(4, 4, 0x5067 | 0x80), (5, 5, 0x5067 | 0x8), (5, 4, 0x5067 | 0x200)],
    ids=["p4d-of-4", "pgd", "p4d-of-5"],
)
@pytest.mark.parametrize("kernel", ["v5.18", "v6.1"])
def test_bad_top_entries_are_cleared_and_count_as_holes(backend, levels, level, entry, kernel):
    mm = gpuhmm.AddressSpace(levels=levels, kernel=kernel)
    mm.mmap(BASE, BASE + 3 * 4096)
    mm.make_tables(BASE, level)
    mm.set_entry(BASE, level, entry)
    ret, range_ = ask(mm, BASE, 3, backend)
    assert ret == 0
    assert not range_.hmm_pfns.any()
    assert mm.entry(BASE, level) == 0
    assert range_.stats.walks == 1


@pytest.mark.parametrize(("kernel", "cleared"), [("v5.18", True), ("v6.1", False)])
def test_bad_entries_without_a_vma_are_cleared_by_the_old_walk_only(backend, kernel, cleared):
    mm = gpuhmm.AddressSpace(kernel=kernel)
    mm.set_entry(BASE, 4, 0x5067 | 0x80)
    ret, range_ = ask(mm, BASE, 3, backend)
    assert ret == 0
    assert range_.hmm_pfns.tolist() == [ERROR] * 3
    assert (mm.entry(BASE, 4) == 0) == cleared


def test_a_handler_that_changes_nothing_is_a_livelock_not_a_hang(backend):
    class Lazy(Recorder):
        def handle_mm_fault(self, mm, vma, va, flags):
            return 0x100

    with pytest.raises(gpuhmm.LivelockError, match="without changing a page table"):
        ask(anonymous(1, faults=Lazy()), BASE, 1, backend, default_flags=FAULT)


def test_an_exception_of_the_handler_reaches_the_caller(backend):
    class Broken(Recorder):
        def handle_mm_fault(self, mm, vma, va, flags):
            raise KeyError("out of frames")

    mm = anonymous(4, faults=Broken())
    mm.map_pfns(BASE, words(8))
    with pytest.raises(KeyError, match="out of frames"):
        ask(mm, BASE, 4, backend, default_flags=FAULT)


def test_a_pud_that_is_huge_but_not_devmap_is_split_by_the_walk(backend):
    mm = gpuhmm.AddressSpace()
    mm.mmap(1 << 39, (1 << 39) + (1 << 30))
    mm.make_tables(1 << 39, 3)
    mm.set_entry(1 << 39, 3, 0x40000 << 12 | 0x8000_0000_0000_00E7)
    ret, range_ = ask(mm, (1 << 39) + 0x5000, 3, backend)
    assert (ret, range_.stats.splits, range_.stats.walks) == (0, 1, 1)
    assert not range_.hmm_pfns.any()
    assert mm.entry(1 << 39, 3) == 0


def test_needs_are_or_ed_over_an_extent_of_several_waves():
    """A hole larger than a wave whose only request is its last page."""
    npages = (1 << 20) + 1000
    base = 1 << 40
    outcomes = []
    for backend in ("reference", "cpu"):
        mm = gpuhmm.AddressSpace(faults=Recorder(answer=1))
        mm.mmap(base, base + npages * 4096, RW)
        words_in = np.zeros(npages, dtype=np.uint64)
        words_in[-1] = FAULT | WRITE
        ret, range_ = ask(mm, base, npages, backend, words_in=words_in, pfn_flags_mask=FAULT | WRITE)
        assert (range_.hmm_pfns[range_.hmm_pfns != 0] == FAULT | WRITE).all()
        outcomes.append((ret, mm.faults.calls))
    assert outcomes[0] == outcomes[1] == (-EFAULT, [(base, 0x81)])
