"""Runs: the words of a range as maximal pieces, so that a hole of any size is one of them.

A run holds pages side by side with the same flags and order.  Where there is a page behind them, or at
least a PFN, PFNs count up; holes and errors are the same word throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm.ranges import RangeStats, check_fields
from gpuhmm.hmm.walk.runs import counts_up
from gpuhmm.hmm.words import hmm_pfn_to_order, word_layout
from gpuhmm.mm.handler import FAULT_FLAG_REMOTE
from gpuhmm.mm.notifier import MmuIntervalNotifier
from gpuhmm.mm.profile import KernelProfile
from gpuhmm.mm.tables import Words

#: One run: address, PFN of its first page (0 in a hole), pages of 4 KiB, VALID, WRITE and ERROR bits and
#: what the words hold beside them (DMA_MAPPED, P2PDMA, P2PDMA_BUS), order.
RUN_DTYPE = np.dtype(
    [("va", np.uint64), ("pfn", np.uint64), ("npages", np.uint64), ("flags", np.uint64), ("order", np.uint8)]
)

Runs = npt.NDArray[np.void]


@dataclass
class HmmRuns:
    """A ``struct hmm_range`` whose answer is wanted as runs: ``[start, end)`` bytes, one request for all.

    After :func:`gpuhmm.hmm_range_fault_runs`, ``runs`` is ``RUN_DTYPE``[n] by address, without a gap
    from ``start`` to ``end``, or to the page at which an error ended the walk.  ValueError for
    unaligned and reversed ranges.
    """

    notifier: MmuIntervalNotifier
    start: int
    end: int
    notifier_seq: int = 0
    default_flags: int = 0
    dev_private_owner: int = 0
    stats: RangeStats = field(default_factory=RangeStats)
    runs: Runs = field(default_factory=lambda: np.empty(0, dtype=RUN_DTYPE))

    #: Without input words there is nothing that a mask could let through.
    pfn_flags_mask: ClassVar[int] = 0
    fault_flags: ClassVar[int] = FAULT_FLAG_REMOTE

    def __post_init__(self) -> None:
        self.check()

    @property
    def npages(self) -> int:
        """Pages of 4 KiB in the range."""
        return (self.end - self.start) >> 12

    def check(self) -> None:
        """Raise unless every field may be used; called again by ``hmm_range_fault_runs()``."""
        check_fields(self)


def runs_of_words(start: int, hmm_pfns: Words, kernel: str | KernelProfile = "v5.18") -> Runs:
    """Return the runs of the words of a range that begins at ``start`` bytes: ``RUN_DTYPE``[n].

    ``kernel`` gave the words.  ValueError for words of another layout, as far as their orders tell.
    """
    if not len(hmm_pfns):
        return np.empty(0, dtype=RUN_DTYPE)
    heads = np.concatenate(([0], np.flatnonzero(~_continues(hmm_pfns[:-1], hmm_pfns[1:])) + 1))
    npages = np.diff(np.concatenate((heads, [len(hmm_pfns)]))).astype(np.uint64)
    vas = np.uint64(start) + heads.astype(np.uint64) * np.uint64(4096)
    return _runs(vas, hmm_pfns[heads], npages, kernel)


def joined(pieces: list[Words], past: int, kernel: KernelProfile) -> Runs:
    """Return the maximal runs of pieces that leave no gap below ``past`` bytes.

    Each piece is uint64[2, n]: address and first word of runs by address.
    """
    vas, words = np.concatenate([*pieces, np.empty((2, 0), dtype=np.uint64)], axis=1)
    if not len(vas):
        return np.empty(0, dtype=RUN_DTYPE)
    npages = np.diff(vas, append=np.uint64(past)) >> np.uint64(12)
    last = words + np.where(_counts_up(words), npages - np.uint64(1), np.uint64(0))
    heads = np.concatenate(([0], np.flatnonzero(~_continues(last[:-1], words[1:])) + 1))
    return _runs(vas[heads], words[heads], np.add.reduceat(npages, heads), kernel)


def clip_runs(runs: Runs, start: int, end: int) -> Runs:
    """Return the part of the runs that lies in ``[start, end)`` bytes, a copy."""
    ends = runs["va"] + (runs["npages"] << np.uint64(12))
    low = int(np.searchsorted(ends, np.uint64(start), "right"))
    high = int(np.searchsorted(runs["va"], np.uint64(end), "left"))
    inside = runs[low:high].copy()
    if not len(inside):
        return inside
    before = max(start - int(inside["va"][0]), 0) >> 12
    inside["va"][0] += np.uint64(before << 12)
    inside["npages"][0] -= np.uint64(before)
    if _counts_up(inside["pfn"][:1] | inside["flags"][:1])[0]:
        inside["pfn"][0] += np.uint64(before)
    inside["npages"][-1] -= np.uint64(max(int(ends[high - 1]) - end, 0) >> 12)
    return inside


def expand_runs(runs: Runs, kernel: str | KernelProfile = "v5.18") -> Words:
    """Return the words of ``kernel`` that the runs stand for: uint64, one a page, by address."""
    words = runs["pfn"] | runs["flags"] | runs["order"].astype(np.uint64) << word_layout(kernel).order_shift
    npages = runs["npages"].astype(np.int64)
    inside = np.arange(int(npages.sum())) - np.repeat(np.cumsum(npages) - npages, npages)
    step = np.repeat(_counts_up(words), npages)
    return np.repeat(words, npages) + np.where(step, inside, 0).astype(np.uint64)


def _counts_up(words: Words) -> npt.NDArray[np.bool_]:
    decide: Any = counts_up
    answers: npt.NDArray[np.bool_] = decide(words)
    return answers


def _continues(words: Words, after: Words) -> npt.NDArray[np.bool_]:
    return after == words + _counts_up(words)


def _runs(vas: Words, words: Words, npages: Words, kernel: str | KernelProfile) -> Runs:
    layout = word_layout(kernel)
    runs = np.empty(len(vas), dtype=RUN_DTYPE)
    runs["va"] = vas
    runs["pfn"] = words & layout.pfn
    runs["npages"] = npages
    runs["flags"] = words & layout.flags
    runs["order"] = hmm_pfn_to_order(words, kernel)
    return runs
