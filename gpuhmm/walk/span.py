"""Spans: the pages of consecutive extents, looked at and written one after the other.

``resolve_span`` writes words and finds the lowest page at which a walk stops, ``restore_words`` takes
back what was written above it, ``describe_stop`` says what the host must do there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE, HMM_PFN_VALID, hmm_pte_need_fault
from gpuhmm.shared import shared
from gpuhmm.walk.constants import Walk, asks_by_page, may_fault
from gpuhmm.walk.extent import KIND_FILL_FIRST, KIND_FORCED, KIND_LEAF, Extent, extent_at
from gpuhmm.walk.pte import ACTION_NONE, pte_stop, pte_word
from gpuhmm.x86 import (
    ALL_ONES,
    INDEX_MASK,
    KNL_ERRATUM_MASK,
    ONE,
    PAGE_DEVMAP,
    PAGE_PRESENT,
    PAGE_RW,
    PAGE_SHIFT,
    PAGE_SPECIAL,
    PTE_PFN_MASK,
    U64,
    ZERO,
    Truth,
)

#: No page of the span stops the walk.
NO_STOP = ALL_ONES

#: From the RW bit of an entry to the WRITE bit of a word.
_RW_TO_WRITE = U64(61)


@shared(
    "uint64(uint64, uint64, uint64, Walk, Array2, Array2, Array2, ChildArray, Array2, Array1, Array1, uint64)"
)
def resolve_span(
    first: np.uint64,
    past: np.uint64,
    last: np.uint64,
    walk: Walk,
    vmas: npt.NDArray[np.uint64],
    owners: npt.NDArray[np.uint64],
    upper: npt.NDArray[np.uint64],
    child: npt.NDArray[np.int32],
    leaf: npt.NDArray[np.uint64],
    hmm_pfns: npt.NDArray[np.uint64],
    saved: npt.NDArray[np.uint64],
    saved_page: np.uint64,
) -> np.uint64:
    """Write the words of ``[first, past)`` in a walk of ``[last, walk.end)``; return its first stop.

    The stop is the address at which a page of the span stops the walk, or ``NO_STOP``; it may lie
    below ``first``, where the extent begins there.  Words above it may be written too: if anything
    can be asked for, ``saved`` then holds what every page of the span had, from ``saved_page`` on.
    """
    va = first
    while va < past:
        extent = extent_at(va, last, walk, vmas, upper, child)
        end = extent.end
        if end > past:
            end = past
        page = (va - walk.start) >> PAGE_SHIFT
        count = (end - va) >> PAGE_SHIFT
        stop = NO_STOP
        if extent.kind == KIND_FORCED:
            stop = extent.start
        elif extent.kind == KIND_LEAF:
            asked = ZERO
            if may_fault(walk):
                asked = save_words(page, count, hmm_pfns, saved, saved_page)
            stop = resolve_leaf(
                extent.row, va, count, page, asked, walk, owners, leaf, hmm_pfns, saved, saved_page
            )
        else:
            if may_fault(walk):
                if need_of_pages(extent, va, end, walk, hmm_pfns) != ZERO:
                    stop = extent.start
                save_words(page, count, hmm_pfns, saved, saved_page)
            word = extent.word + ((va - extent.start) >> PAGE_SHIFT) * extent.step
            for i in range(count):
                hmm_pfns[page + i] = word + i * extent.step
        if stop != NO_STOP:
            if may_fault(walk):
                rest = end
                if extent.kind == KIND_FORCED:
                    rest = va
                save_words(
                    (rest - walk.start) >> PAGE_SHIFT,
                    (past - rest) >> PAGE_SHIFT,
                    hmm_pfns,
                    saved,
                    saved_page,
                )
            return stop
        va = end
    return NO_STOP


@shared("uint64(uint64, uint64, Array1, Array1, uint64)")
def save_words(
    page: np.uint64,
    count: np.uint64,
    hmm_pfns: npt.NDArray[np.uint64],
    saved: npt.NDArray[np.uint64],
    saved_page: np.uint64,
) -> np.uint64:
    """Keep the inputs of ``count`` pages; return the OR of them."""
    asked = ZERO
    at = page - saved_page
    for i in range(count):
        asked = asked | hmm_pfns[page + i]
        saved[at + i] = hmm_pfns[page + i]
    return asked


@shared("void(uint64, uint64, Array1, Array1, uint64)")
def restore_words(
    page: np.uint64,
    past_page: np.uint64,
    hmm_pfns: npt.NDArray[np.uint64],
    saved: npt.NDArray[np.uint64],
    saved_page: np.uint64,
) -> None:
    """Put the inputs of pages ``[page, past_page)`` back."""
    at = page - saved_page
    for i in range(past_page - page):
        hmm_pfns[page + i] = saved[at + i]


@shared("uint64(Extent, uint64, uint64, Walk, Array1)")
def need_of_pages(
    extent: Extent, va: np.uint64, end: np.uint64, walk: Walk, hmm_pfns: npt.NDArray[np.uint64]
) -> np.uint64:
    """Return the HMM_NEED_* bits of the pages ``[va, end)`` of an extent that is no leaf table."""
    if extent.kind == KIND_FILL_FIRST and va != extent.start:
        return ZERO  # who looks at the first page decides
    if not asks_by_page(walk):
        return hmm_pte_need_fault(ZERO, extent.cpu_flags, walk.default_flags, walk.pfn_flags_mask)
    if extent.kind == KIND_FILL_FIRST:
        request = hmm_pfns[(va - walk.start) >> PAGE_SHIFT]
        return hmm_pte_need_fault(request, extent.cpu_flags, walk.default_flags, walk.pfn_flags_mask)
    need = ZERO
    page = (va - walk.start) >> PAGE_SHIFT
    past = (end - walk.start) >> PAGE_SHIFT
    while page < past:
        need = need | hmm_pte_need_fault(
            hmm_pfns[page], extent.cpu_flags, walk.default_flags, walk.pfn_flags_mask
        )
        page = page + ONE
    return need


@shared("uint64(uint64, uint64, uint64, uint64, uint64, Walk, Array2, Array2, Array1, Array1, uint64)")
def resolve_leaf(
    row: np.uint64,
    va: np.uint64,
    count: np.uint64,
    page: np.uint64,
    asked: np.uint64,
    walk: Walk,
    owners: npt.NDArray[np.uint64],
    leaf: npt.NDArray[np.uint64],
    hmm_pfns: npt.NDArray[np.uint64],
    saved: npt.NDArray[np.uint64],
    saved_page: np.uint64,
) -> np.uint64:
    """Write the words of ``count`` PTEs; return the first address that stops the walk, or ``NO_STOP``.

    All are taken for ordinary pages, in one pass without a branch.  Whether they were is known
    afterwards; if not, they are written again, while still in the cache.  ``asked`` is the OR of the
    input words.
    """
    slot = (va >> PAGE_SHIFT) & INDEX_MASK
    every = ALL_ONES
    some = ZERO
    for i in range(count):
        pte = leaf[row, slot + i]
        every = every & pte
        some = some | pte
        hmm_pfns[page + i] = plain_word(pte)
    request = (asked & walk.pfn_flags_mask) | walk.default_flags
    if is_plain(every, some, walk):
        if not may_fault(walk) or (request & HMM_PFN_REQ_WRITE) == ZERO or (every & PAGE_RW) != ZERO:
            return NO_STOP
    elif is_sparse(row, slot, count, walk, leaf):
        for i in range(count):
            hmm_pfns[page + i] = sparse_word(leaf[row, slot + i])
    else:
        for i in range(count):
            hmm_pfns[page + i] = pte_word(leaf[row, slot + i], walk, owners)
    if not may_fault(walk) or (request & HMM_PFN_REQ_FAULT) == ZERO:
        return NO_STOP
    for i in range(count):
        own = ZERO
        if asks_by_page(walk):
            own = saved[page - saved_page + i]
        if pte_stop(leaf[row, slot + i], own, walk, owners)[0] != ACTION_NONE:
            return va + (i << PAGE_SHIFT)
    return NO_STOP


@shared("boolean(uint64, uint64, Walk)")
def is_plain(every: np.uint64, some: np.uint64, walk: Walk) -> Truth:
    """True only if all PTEs of that AND and OR are present pages that a device may map.

    The OR of the PFNs is never below the highest, so that a False may be too careful.
    """
    return (
        (every & PAGE_PRESENT) != ZERO
        and (some & PAGE_SPECIAL) == ZERO
        and ((some & PTE_PFN_MASK) >> PAGE_SHIFT) <= walk.highest_memmap_pfn
    )


@shared("uint64(uint64)")
def plain_word(pte: np.uint64) -> np.uint64:
    """pte_word of a present page that a device may map."""
    return ((pte & PTE_PFN_MASK) >> PAGE_SHIFT) | HMM_PFN_VALID | ((pte & PAGE_RW) << _RW_TO_WRITE)


@shared("boolean(uint64, uint64, uint64, Walk, Array2)")
def is_sparse(
    row: np.uint64, slot: np.uint64, count: np.uint64, walk: Walk, leaf: npt.NDArray[np.uint64]
) -> Truth:
    """True if every PTE is none or a present page that a device may map, the zero page included."""
    odd = ZERO
    for i in range(count):
        pte = leaf[row, slot + i]
        pfn = (pte & PTE_PFN_MASK) >> PAGE_SHIFT
        none = (pte & ~KNL_ERRATUM_MASK) == ZERO
        present = (pte & PAGE_PRESENT) != ZERO
        pageless = ((pte & PAGE_SPECIAL) != ZERO) | (pfn > walk.highest_memmap_pfn)
        refused = pageless & ((pte & PAGE_DEVMAP) == ZERO) & (pfn != walk.zero_pfn)
        if (not none) & ((not present) | refused):
            odd = odd | ONE
    return odd == ZERO


@shared("uint64(uint64)")
def sparse_word(pte: np.uint64) -> np.uint64:
    """pte_word of a PTE that is none or a present page that a device may map."""
    if (pte & PAGE_PRESENT) == ZERO:
        return ZERO
    return plain_word(pte)


@shared("UniTuple5(uint64, Walk, Array2, Array2, Array2, ChildArray, Array2, Array1)")
def describe_stop(
    va: np.uint64,
    walk: Walk,
    vmas: npt.NDArray[np.uint64],
    owners: npt.NDArray[np.uint64],
    upper: npt.NDArray[np.uint64],
    child: npt.NDArray[np.int32],
    leaf: npt.NDArray[np.uint64],
    hmm_pfns: npt.NDArray[np.uint64],
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """Return ACTION_*, HMM_NEED_*, end of the extent, place of the VMA and level of a stop at ``va``."""
    extent = extent_at(va, va, walk, vmas, upper, child)
    if extent.kind == KIND_FORCED:
        return extent.action, ZERO, extent.end, extent.vma, extent.row
    if extent.kind == KIND_LEAF:
        request = ZERO
        if asks_by_page(walk):
            request = hmm_pfns[(va - walk.start) >> PAGE_SHIFT]
        action, need = pte_stop(leaf[extent.row, (va >> PAGE_SHIFT) & INDEX_MASK], request, walk, owners)
        return action, need, extent.end, extent.vma, ONE
    need = need_of_pages(extent, va, extent.end, walk, hmm_pfns)
    return extent.action, need, extent.end, extent.vma, ONE
