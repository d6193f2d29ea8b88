"""hmm_range_fault_unlocked_timeout: rounds, what they begin with, and when they end (v7.3)."""

import itertools
from errno import EBUSY, EFAULT, ENOMEM

import numpy as np
import pytest
from spaces import BASE, anonymous, ask

import gpuhmm
from gpuhmm.mm import handler as bits

FAULT = int(gpuhmm.HMM_PFN_REQ_FAULT)
BOTH = FAULT | int(gpuhmm.HMM_PFN_REQ_WRITE)
UNLOCKED = 0x94


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    return request.param


class Answers:
    """Maps the page, unless the next of ``answers`` is one that ends a burst; notes every call."""

    def __init__(self, *answers, before=lambda: None):
        self.answers = list(answers)
        self.calls = []
        self.before = before

    def handle_mm_fault(self, mm, vma, va, flags):
        self.calls.append((va, flags))
        self.before()
        answer = self.answers.pop(0) if self.answers else 0
        if not answer and not mm.entry(va, 1):
            mm.make_tables(va, 1)
            mm.set_entry(va, 1, (va >> 12 & 0xFFFF) << 12 | 0x67)
        return answer

    def migration_entry_wait(self, mm, va, level):
        raise AssertionError("no migration here")


def range_of(mm, npages, words_in=None, **request):
    notifier = mm.notifier(BASE, BASE + npages * 4096)
    hmm_pfns = np.zeros(npages, dtype=np.uint64) if words_in is None else words_in.copy()
    return gpuhmm.HmmRange(notifier, BASE, BASE + npages * 4096, hmm_pfns, **request)


@pytest.mark.parametrize("answer", [bits.VM_FAULT_RETRY, bits.VM_FAULT_COMPLETED])
def test_a_fault_that_gave_the_lock_up_starts_a_new_round_at_the_start(backend, answer):
    handler = Answers(0, answer)
    mm = anonymous(4, kernel="v7.3", faults=handler)
    range_ = range_of(mm, 4, default_flags=BOTH)
    assert gpuhmm.hmm_range_fault_unlocked_timeout(range_, 0, backend) == 0
    pages = [BASE + 4096 * i for i in range(4)]
    # The burst ends at the second page; the new round finds the first one there.
    assert handler.calls == [(va, UNLOCKED | 1) for va in (pages[0], pages[1], *pages[1:])]
    assert (range_.stats.locks_dropped, range_.stats.faults, range_.stats.walks) == (1, 5, 3)
    assert (range_.hmm_pfns & np.uint64(BOTH) == BOTH).all()


def test_the_same_answer_with_the_lock_held_is_ebusy_from_v7_3_on(backend):
    for kernel, expected in (("v7.0", 0), ("v7.3", -EBUSY)):
        handler = Answers(bits.VM_FAULT_RETRY)
        mm = anonymous(2, kernel=kernel, faults=handler)
        ret, range_ = ask(mm, BASE, 2, backend, default_flags=FAULT)
        assert ret == expected
        assert {flags for _, flags in handler.calls} == {0x80}
        assert range_.stats.locks_dropped == (expected != 0)
    assert len(handler.calls) == range_.stats.walks == 1


def test_outputs_of_the_round_before_are_requests_under_a_mask(backend):
    """The second page is read-only and not asked for; its VALID makes it a request, which needs nothing."""
    handler = Answers(bits.VM_FAULT_RETRY)
    mm = anonymous(3, kernel="v7.3", faults=handler)
    mm.map_pfns(BASE, np.array([5, 6], dtype=np.uint64), flags=0x25)
    asked = np.array([0, 0, FAULT], dtype=np.uint64)
    range_ = range_of(mm, 3, asked, pfn_flags_mask=BOTH)

    def unmap_the_first():
        handler.before = lambda: None
        mm.set_entry(BASE, 1, 0)

    handler.before = unmap_the_first
    assert gpuhmm.hmm_range_fault_unlocked_timeout(range_, 0, backend) == 0
    # The first round left VALID in page 0, so that the second one faults it in again.
    assert [va for va, _ in handler.calls] == [BASE + 8192, BASE, BASE + 4096, BASE + 8192]


def test_each_round_takes_a_new_sequence(backend):
    handler = Answers()
    mm = anonymous(2, kernel="v7.3", faults=handler)
    range_ = range_of(mm, 2, default_flags=FAULT, notifier_seq=0)
    left = iter([True, True, False])
    handler.before = lambda: next(left, False) and range_.notifier.invalidate()
    assert gpuhmm.hmm_range_fault_unlocked_timeout(range_, 0, backend) == 0
    assert not range_.notifier.read_retry(range_.notifier_seq)
    # Two invalidations in one burst: one stale check, then a round that finds both pages.
    assert (len(handler.calls), range_.stats.walks) == (2, 3)


def test_the_time_runs_over_invalidations_and_anew_after_a_dropped_lock(backend, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("gpuhmm.hmm.unlocked.time.monotonic", lambda: next(clock))
    for answers, rounds in (((), 3), ((bits.VM_FAULT_RETRY,) * 4, 4 + 3)):
        mm = anonymous(1, kernel="v7.3")
        range_ = range_of(mm, 1, default_flags=FAULT)

        class Undone(Answers):
            def handle_mm_fault(self, mm, vma, va, flags, notifier=range_.notifier):
                result = super().handle_mm_fault(mm, vma, va, flags)
                if not result:
                    mm.set_entry(va, 1, 0)
                    notifier.invalidate()
                return result

        mm.faults = Undone(*answers)
        # Seconds pass with every look at the clock: one when it begins, one a round, one after a drop.
        assert gpuhmm.hmm_range_fault_unlocked_timeout(range_, 3, backend) == -EBUSY
        assert len(mm.faults.calls) == rounds


def test_other_errors_end_it(backend):
    for answer, errno in ((bits.VM_FAULT_OOM, ENOMEM), (bits.VM_FAULT_SIGSEGV, EFAULT)):
        mm = anonymous(2, kernel="v7.3", faults=Answers(answer))
        range_ = range_of(mm, 2, default_flags=FAULT)
        assert gpuhmm.hmm_range_fault_unlocked_timeout(range_, 0, backend) == -errno


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"kernel from v7\.3 on \(got v7\.0\)"):
        gpuhmm.hmm_range_fault_unlocked_timeout(range_of(anonymous(1, kernel="v7.0"), 1), 0)
    with pytest.raises(ValueError, match=r"timeout must be seconds, 0 for none \(got -1\)"):
        gpuhmm.hmm_range_fault_unlocked_timeout(range_of(anonymous(1, kernel="v7.3"), 1), -1)
