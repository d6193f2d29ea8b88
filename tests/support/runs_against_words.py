"""One random case asked twice: as words of the reference, and as runs of a back end."""

import numpy as np

import gpuhmm
from gpuhmm.check.fault_script import ImprovisedFaults, JournaledSpace
from gpuhmm.mm.profile import kernel_profile


def ask(case, make, call):
    """Return the return code, the request object and the space after one call."""
    faults = ImprovisedFaults(case.fault_seed, case.invalidate_after)
    mm = case.space(faults, JournaledSpace)
    notifier = mm.notifier(case.start, case.end)
    request = make(notifier, notifier.read_begin())
    faults.watch(notifier)
    try:
        return call(request), request, mm
    except ValueError:
        return None, request, mm


def runs_and_words(case, backend):
    """Assert that both answers are the same, with the same calls on the way."""
    options = {"default_flags": case.default_flags, "dev_private_owner": case.dev_private_owner}
    kernel = kernel_profile(case.kernel)
    # Without the bits that a word keeps of its input: runs have no input.
    unwritten = np.full(case.npages, 0xFFFF_FFFF_FFFF_FFFF & ~kernel.hmm_pfn_sticky, dtype=np.uint64)

    def words(notifier, seq):
        return gpuhmm.HmmRange(notifier, case.start, case.end, unwritten.copy(), notifier_seq=seq, **options)

    def runs(notifier, seq):
        return gpuhmm.HmmRuns(notifier, case.start, case.end, notifier_seq=seq, **options)

    ret, range_, mm = ask(case, words, lambda request: gpuhmm.hmm_range_fault(request, "reference"))
    got, request, same_mm = ask(case, runs, lambda request: gpuhmm.hmm_range_fault_runs(request, backend))
    assert got == ret, case.name
    if ret is None:
        return
    expanded = gpuhmm.expand_runs(request.runs, kernel)
    written = range_.hmm_pfns if ret == 0 else range_.hmm_pfns[: len(expanded)]
    assert np.array_equal(expanded, written), case.name
    assert (range_.hmm_pfns[len(expanded) :] == unwritten[len(expanded) :]).all(), case.name
    assert np.array_equal(request.runs, gpuhmm.runs_of_words(case.start, expanded, kernel)), case.name
    assert range_.stats == request.stats, case.name
    for left, right in zip(mm.journal(), same_mm.journal(), strict=True):
        assert np.array_equal(left, right), case.name
