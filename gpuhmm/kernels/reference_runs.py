"""Runs of the reference: its walk, with a list of runs where the words would be."""

from __future__ import annotations

import numpy as np

from gpuhmm.hmm.runs import HmmRuns, joined, runs_of_words
from gpuhmm.hmm.settle import SequentialWalk
from gpuhmm.kernels.reference import HmmWalk
from gpuhmm.mm.profile import KernelProfile
from gpuhmm.mm.tables import Words
from gpuhmm.mm.x86 import U64, ZERO


def runs_resolver(request: HmmRuns) -> _RunsWalk:
    """Return the walk of one call, a :class:`gpuhmm.hmm.settle.SequentialWalk`."""
    return _RunsWalk(request)


class _RunsWalk(SequentialWalk):
    def __init__(self, request: HmmRuns) -> None:
        self.request = request

    def hmm_range_fault(self) -> int:
        runs = _RunList(self.request.start, self.request.notifier.mm.kernel)
        ret = HmmWalk(self.request, runs).hmm_range_fault()
        self.request.runs = joined(runs.pieces, runs.past, self.request.notifier.mm.kernel)
        return ret


class _RunList:
    """Takes what is stored in ``hmm_pfns``, page by page or a piece at once, always at its end."""

    def __init__(self, start: int, kernel: KernelProfile) -> None:
        self.start = self.past = start
        self.kernel = kernel
        self.pieces: list[Words] = []

    def __getitem__(self, pages: int | slice) -> np.uint64:
        """Return what pages ask for and bring along by themselves: nothing."""
        return ZERO

    def __setitem__(self, pages: int | slice, value: int | Words) -> None:
        """Store one word in a page or in a piece of pages, or the words of a piece."""
        first, past = (pages.start, pages.stop) if isinstance(pages, slice) else (pages, pages + 1)
        va = self.start + (first << 12)
        assert va == self.past, "a walk stores words in the order of addresses"
        if isinstance(value, np.ndarray):
            runs = runs_of_words(va, value, self.kernel)
            heads = ((runs["va"] - U64(va)) >> U64(12)).astype(np.int64)
            self.pieces.append(np.stack([runs["va"], value[heads]]))
        else:
            self.pieces.append(np.array([[va], [value]], dtype=np.uint64))
        self.past = self.start + (past << 12)
