"""The pages of one leaf table: what stops a walk among them.

Every loop runs over PTEs that lie side by side and decides without a branch, so that the compiler
turns it into vector instructions.  Loops that cannot, because they look owners up, run only where one
of these found that it matters.
"""

from __future__ import annotations

import numpy as np

from gpuhmm.hmm.walk.arrays import Arrays
from gpuhmm.hmm.walk.constants import Walk, asks_by_page, may_fault
from gpuhmm.hmm.walk.pte import (
    ACTION_NONE,
    pte_may_stop,
    pte_stop,
    pte_word,
)
from gpuhmm.hmm.words import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE, HMM_PFN_VALID
from gpuhmm.mm.x86 import (
    ALL_ONES,
    PAGE_PRESENT,
    PAGE_RW,
    PAGE_SHIFT,
    PAGE_SPECIAL,
    PTE_PFN_MASK,
    U64,
    ZERO,
    Truth,
)
from gpuhmm.shared import shared

#: From the RW bit of an entry to the WRITE bit of a word.
_RW_TO_WRITE = U64(61)
#: Pages by which a table is judged before all of it is looked at.
_SAMPLE = U64(64)


@shared("uint64(uint64, uint64, uint64, uint64, Walk, Arrays)")
def leaf_stop(
    row: np.uint64,
    slot: np.uint64,
    count: np.uint64,
    page: np.uint64,
    walk: Walk,
    arrays: Arrays,
) -> np.uint64:
    """Return which of ``count`` PTEs from ``slot`` on is the first to stop the walk; ``count`` if none is.

    ``hmm_pfns[page]`` holds the request of the first.
    """
    granted = granted_to_all(walk)
    if all_plain(row, slot, min(count, _SAMPLE), granted, walk, arrays) and all_plain(
        row, slot, count, granted, walk, arrays
    ):
        return count
    may_stop: Truth = False
    if asks_by_page(walk):
        asked = ZERO
        for i in range(count):
            asked = asked | arrays.hmm_pfns[page + i]
        if (((asked & walk.pfn_flags_mask) | walk.default_flags) & HMM_PFN_REQ_FAULT) == ZERO:
            return count
        for i in range(count):
            may_stop = may_stop | pte_may_stop(arrays.leaf[row, slot + i], arrays.hmm_pfns[page + i], walk)
    else:
        for i in range(count):
            may_stop = may_stop | pte_may_stop(arrays.leaf[row, slot + i], ZERO, walk)
    if may_stop:
        for i in range(count):
            request = ZERO
            if asks_by_page(walk):
                request = arrays.hmm_pfns[page + i]
            if pte_stop(arrays.leaf[row, slot + i], request, walk, arrays.owners)[0] != ACTION_NONE:
                return U64(i)
    return count


@shared("uint64(Walk)")
def granted_to_all(walk: Walk) -> np.uint64:
    """Return the bits of a plain PTE with which no request of this walk can stop it."""
    if may_fault(walk) and (asks_by_page(walk) or (walk.default_flags & HMM_PFN_REQ_WRITE) != ZERO):
        return PAGE_PRESENT | PAGE_RW
    return PAGE_PRESENT


@shared("boolean(uint64, uint64, uint64, uint64, Walk, Arrays)")
def all_plain(
    row: np.uint64,
    slot: np.uint64,
    count: np.uint64,
    granted: np.uint64,
    walk: Walk,
    arrays: Arrays,
) -> Truth:
    """True if every PTE has all bits of ``granted``, PRESENT among them, and a page for devices."""
    every = ALL_ONES
    some = ZERO
    beyond: Truth = False
    for i in range(count):
        pte = arrays.leaf[row, slot + i]
        every = every & pte
        some = some | pte
        beyond = beyond | ((pte & PTE_PFN_MASK) >> PAGE_SHIFT > walk.highest_memmap_pfn)
    return (every & granted) == granted and (some & PAGE_SPECIAL) == ZERO and not beyond


@shared("uint64(uint64)")
def plain_word(pte: np.uint64) -> np.uint64:
    """ownerless_word of a plain PTE: it has plain_bits, is not special and not beyond the memory map."""
    return ((pte & PTE_PFN_MASK) >> PAGE_SHIFT) | HMM_PFN_VALID | ((pte & PAGE_RW) << _RW_TO_WRITE)


@shared("uint64(Walk)")
def plain_bits(walk: Walk) -> np.uint64:
    """Return what every plain PTE has: PRESENT, and with shadow stacks RW, for which D may stand there."""
    if walk.shadow_stack != ZERO:
        return PAGE_PRESENT | PAGE_RW
    return PAGE_PRESENT


@shared("boolean(uint64, uint64, Walk, Arrays)")
def keeps_input(page: np.uint64, count: np.uint64, walk: Walk, arrays: Arrays) -> Truth:
    """True if one of ``count`` input words has a bit that its output keeps.

    Hardly ever: only a caller that goes on using words which it mapped for DMA sets one.  So loops that
    write need not look at inputs.
    """
    if walk.hmm_pfn_sticky == ZERO:
        return False
    some = ZERO
    for i in range(count):
        some = some | arrays.hmm_pfns[page + i]
    return (some & walk.hmm_pfn_sticky) != ZERO


@shared("void(uint64, uint64, uint64, uint64, Walk, Arrays)")
def write_leaf_beside_input(
    row: np.uint64, slot: np.uint64, count: np.uint64, page: np.uint64, walk: Walk, arrays: Arrays
) -> None:
    """Write the words of a leaf table where input words have bits that are kept."""
    for i in range(count):
        kept = arrays.hmm_pfns[page + i] & walk.hmm_pfn_sticky
        arrays.hmm_pfns[page + i] = kept | pte_word(arrays.leaf[row, slot + i], walk, arrays.owners)
