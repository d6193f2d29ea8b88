"""Runs: which pages go on where the page before them ended, and the runs of one extent."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm.walk.constants import Walk
from gpuhmm.hmm.walk.extent import KIND_FORCED, KIND_LEAF, Extent
from gpuhmm.hmm.words import HMM_PFN_VALID, hmm_pte_need_fault
from gpuhmm.mm.x86 import ONE, U64, ZERO, Truth
from gpuhmm.shared import shared

#: Columns of an extent's row in memory, as the fields of :class:`gpuhmm.hmm.walk.extent.Extent`.
EXTENT_COLUMNS = 6
EXTENT_START = U64(0)
EXTENT_END = U64(1)
EXTENT_KIND = U64(2)
EXTENT_ROW = U64(3)
EXTENT_WORD = U64(4)
EXTENT_STEP = U64(5)

#: VALID, and the bits of a PFN in every layout of words; no PFN of a word has more (:mod:`gpuhmm.hmm.words`).
_PAGE_BEHIND = HMM_PFN_VALID | U64((1 << 53) - 1)


@shared("boolean(uint64)")
def counts_up(word: np.uint64) -> Truth:
    """True where a page or a PFN is behind the word; NumPy arrays of words are answered one by one."""
    return (word & _PAGE_BEHIND) != ZERO


@shared("uint64(uint64)")
def next_word(word: np.uint64) -> np.uint64:
    """Return the word of the page after it in the same run: PFNs count up, holes and errors do not."""
    if counts_up(word):
        return word + ONE
    return word


@shared("boolean(Extent, Walk)")
def extent_stops(extent: Extent, walk: Walk) -> Truth:
    """True if the walk stops where the extent starts, given that all pages make the same request."""
    if extent.kind == KIND_FORCED:
        return True
    if extent.kind == KIND_LEAF:
        return False
    need = hmm_pte_need_fault(ZERO, extent.cpu_flags, walk.default_flags, walk.pfn_flags_mask)
    return need != ZERO


@shared("void(Extent, uint64, Array2)")
def store_extent(extent: Extent, place: np.uint64, extents: npt.NDArray[np.uint64]) -> None:
    """Write an extent's row."""
    extents[place, EXTENT_START] = extent.start
    extents[place, EXTENT_END] = extent.end
    extents[place, EXTENT_KIND] = extent.kind
    extents[place, EXTENT_ROW] = extent.row
    extents[place, EXTENT_WORD] = extent.word
    extents[place, EXTENT_STEP] = extent.step


@shared("boolean(uint64, uint64)")
def first_page_is_apart(word: np.uint64, step: np.uint64) -> Truth:
    """True where the words of an extent count up, but its first word, PFN 0 without VALID, does not."""
    return step != ZERO and next_word(word) == word
