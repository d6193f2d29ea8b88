"""Runs of the reference: those of the words that it gives, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.kernels import reference
from gpuhmm.ranges import HmmRange
from gpuhmm.runs import runs_of_words

if TYPE_CHECKING:
    from gpuhmm.runs import HmmRuns

#: Pages that are walked one by one at most, 64 GiB: the reference is no tool for holes of many TiB.
MAX_PAGES = 1 << 24

#: Stands where the walk wrote nothing: no HMM_PFN word has all bits.
_UNWRITTEN = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


def hmm_range_fault_runs(request: HmmRuns) -> int:
    """Return 0 or a negative errno; see :func:`gpuhmm.hmm_range_fault_runs`.

    ValueError for more than ``MAX_PAGES`` pages.
    """
    if request.npages > MAX_PAGES:
        raise ValueError(
            f"the reference walks at most {MAX_PAGES} pages one by one (got {request.npages}); "
            "choose another back end"
        )
    range_ = HmmRange(
        request.notifier,
        request.start,
        request.end,
        np.full(request.npages, _UNWRITTEN),
        notifier_seq=request.notifier_seq,
        default_flags=request.default_flags,
        dev_private_owner=request.dev_private_owner,
        stats=request.stats,
    )
    ret = reference.hmm_range_fault(range_)
    unwritten = np.flatnonzero(range_.hmm_pfns == _UNWRITTEN)
    done = range_.hmm_pfns[: unwritten[0]] if len(unwritten) else range_.hmm_pfns
    request.runs = runs_of_words(request.start, done)
    return ret
