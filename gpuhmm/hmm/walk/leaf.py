"""The pages of one leaf table: what stops a walk among them, and their words.

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
    may_be_device_private,
    ownerless_word,
    pte_may_stop,
    pte_stop,
    pte_word,
)
from gpuhmm.hmm.words import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE, HMM_PFN_VALID
from gpuhmm.mm.x86 import (
    ALL_ONES,
    ONE,
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
#: Pages of a leaf table.
TABLE_PAGES = U64(512)


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


@shared("boolean(uint64, uint64, uint64, Walk, Arrays)")
def seem_plain(look: np.uint64, write: np.uint64, granted: np.uint64, walk: Walk, arrays: Arrays) -> Truth:
    """True if the first pages of both tables are plain, those of the first one with ``granted``."""
    return all_plain(look, ZERO, _SAMPLE, granted, walk, arrays) and all_plain(
        write, ZERO, _SAMPLE, plain_bits(walk), walk, arrays
    )


@shared("UniTuple2(uint64, uint64, uint64, uint64, Walk, Arrays)")
def look_and_write_plain(
    look: np.uint64,
    write: np.uint64,
    page: np.uint64,
    granted: np.uint64,
    walk: Walk,
    arrays: Arrays,
) -> tuple[np.uint64, np.uint64]:
    """Look at the whole table in row ``look``, and take that in row ``write`` for plain pages and write it.

    In one loop, so that entries come from memory while words go there.  Return ONE for each of the two
    tables whose pages are all plain, the first one's with ``granted``; where the second's are not,
    its words are to be written again.
    """
    every_seen = ALL_ONES
    some_seen = ZERO
    every_written = ALL_ONES
    some_written = ZERO
    beyond_seen: Truth = False
    beyond_written: Truth = False
    for i in range(TABLE_PAGES):
        seen = arrays.leaf[look, i]
        pte = arrays.leaf[write, i]
        every_seen = every_seen & seen
        some_seen = some_seen | seen
        beyond_seen = beyond_seen | ((seen & PTE_PFN_MASK) >> PAGE_SHIFT > walk.highest_memmap_pfn)
        every_written = every_written & pte
        some_written = some_written | pte
        beyond_written = beyond_written | ((pte & PTE_PFN_MASK) >> PAGE_SHIFT > walk.highest_memmap_pfn)
        arrays.hmm_pfns[page + i] = plain_word(pte)
    plain_seen = ZERO
    if (every_seen & granted) == granted and (some_seen & PAGE_SPECIAL) == ZERO and not beyond_seen:
        plain_seen = ONE
    plain_written = ZERO
    plain = plain_bits(walk)
    if (every_written & plain) == plain and (some_written & PAGE_SPECIAL) == ZERO:
        if not beyond_written:
            plain_written = ONE
    return plain_seen, plain_written


@shared("boolean(uint64, uint64, uint64, uint64, Walk, Arrays)")
def look_and_write_mixed(
    look: np.uint64,
    look_page: np.uint64,
    write: np.uint64,
    page: np.uint64,
    walk: Walk,
    arrays: Arrays,
) -> Truth:
    """Look at the whole table in row ``look`` and write that in row ``write``, whatever they hold.

    ``look_page`` and ``page`` are the places of their first words.  Return whether a page of the first
    may stop the walk.
    """
    may_stop: Truth = False
    if asks_by_page(walk):
        for i in range(TABLE_PAGES):
            may_stop = may_stop | pte_may_stop(arrays.leaf[look, i], arrays.hmm_pfns[look_page + i], walk)
            arrays.hmm_pfns[page + i] = ownerless_word(arrays.leaf[write, i], walk)
    else:
        for i in range(TABLE_PAGES):
            may_stop = may_stop | pte_may_stop(arrays.leaf[look, i], ZERO, walk)
            arrays.hmm_pfns[page + i] = ownerless_word(arrays.leaf[write, i], walk)
    write_owned(write, ZERO, TABLE_PAGES, page, walk, arrays)
    return may_stop


@shared("void(uint64, uint64, uint64, uint64, Walk, Arrays)")
def write_owned(
    row: np.uint64,
    slot: np.uint64,
    count: np.uint64,
    page: np.uint64,
    walk: Walk,
    arrays: Arrays,
) -> None:
    """Write words that were written as ownerless_word once more where an owner may matter."""
    if arrays.owners.shape[0] > 0:
        owned: Truth = False
        for i in range(count):
            owned = owned | may_be_device_private(arrays.leaf[row, slot + i], walk)
        if owned:
            for i in range(count):
                arrays.hmm_pfns[page + i] = pte_word(arrays.leaf[row, slot + i], walk, arrays.owners)


@shared("void(uint64, uint64, uint64, uint64, Walk, Arrays)")
def write_leaf(
    row: np.uint64,
    slot: np.uint64,
    count: np.uint64,
    page: np.uint64,
    walk: Walk,
    arrays: Arrays,
) -> None:
    """Write the words of ``count`` PTEs from ``slot`` on to ``hmm_pfns[page]`` and after.

    Where the first of them are plain pages, all are taken for such.  Whether they were is known
    afterwards; if not, they are written again, while still in the cache.
    """
    plain = plain_bits(walk)
    if all_plain(row, slot, min(count, _SAMPLE), plain, walk, arrays):
        every = ALL_ONES
        some = ZERO
        beyond: Truth = False
        for i in range(count):
            pte = arrays.leaf[row, slot + i]
            every = every & pte
            some = some | pte
            beyond = beyond | ((pte & PTE_PFN_MASK) >> PAGE_SHIFT > walk.highest_memmap_pfn)
            arrays.hmm_pfns[page + i] = plain_word(pte)
        if (every & plain) == plain and (some & PAGE_SPECIAL) == ZERO and not beyond:
            return
    for i in range(count):
        arrays.hmm_pfns[page + i] = ownerless_word(arrays.leaf[row, slot + i], walk)
    write_owned(row, slot, count, page, walk, arrays)


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
    """write_leaf where input words have bits that are kept."""
    for i in range(count):
        kept = arrays.hmm_pfns[page + i] & walk.hmm_pfn_sticky
        arrays.hmm_pfns[page + i] = kept | pte_word(arrays.leaf[row, slot + i], walk, arrays.owners)
