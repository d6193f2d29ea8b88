"""Ranges cut out of a random case: as one batch, and as calls of the reference one after the other."""

import numpy as np

import gpuhmm
from gpuhmm.check.fault_script import ImprovisedFaults, JournaledSpace
from gpuhmm.check.random_case import random_case


def pieces(rng, npages):
    """Return (first page, past page) of some ranges, which may overlap and come in any order."""
    found = []
    for _ in range(rng.randrange(1, 12)):
        first = rng.randrange(npages)
        found.append((first, min(npages, first + rng.randrange(0, 80))))
    return found


def run(case, cuts, backend, form):
    """Return the codes, the words of all ranges, and what happened on the way."""
    faults = ImprovisedFaults(case.fault_seed, case.invalidate_after)
    mm = case.space(faults, JournaledSpace)
    notifier = mm.notifier(case.start, case.end)
    options = {
        "notifier_seq": notifier.read_begin(),
        "default_flags": case.default_flags,
        "pfn_flags_mask": case.pfn_flags_mask,
        "dev_private_owner": case.dev_private_owner,
    }
    faults.watch(notifier)
    words = np.concatenate([case.hmm_pfns_in[first:past] for first, past in cuts])
    bounds = case.start + (np.array(cuts, dtype=np.uint64) << np.uint64(12))
    starts, ends = np.ascontiguousarray(bounds[:, 0]), np.ascontiguousarray(bounds[:, 1])
    batch = gpuhmm.HmmRangeBatch(notifier, starts, ends, words, **options)
    stats = gpuhmm.RangeStats()
    ranges = [batch[i] for i in range(len(batch))]
    for range_ in ranges:
        range_.stats = stats
    try:
        if form == "calls":
            codes = [gpuhmm.hmm_range_fault(range_, backend) for range_ in ranges]
        elif form == "list":
            codes = gpuhmm.hmm_range_fault_batch(ranges, backend)
        else:
            batch.stats = stats
            codes = gpuhmm.hmm_range_fault_batch(batch, backend)
    except ValueError:
        return None
    return codes, words, stats, mm.journal(), mm.tables()


def batch_and_calls(rng, backend, columns, max_pages=3000):
    """Assert that a batch leaves what the reference leaves, range by range."""
    case = random_case(rng, "cut up", max_pages)
    cuts = pieces(rng, case.npages)
    calls = run(case, cuts, "reference", "calls")
    batch = run(case, cuts, backend, "columns" if columns else "list")
    assert (calls is None) == (batch is None)
    if calls is None:
        return
    assert calls[0] == batch[0]
    assert np.array_equal(calls[1], batch[1])
    assert calls[2] == batch[2]
    for group in (3, 4):
        for left, right in zip(calls[group], batch[group], strict=True):
            assert np.array_equal(left, right)
