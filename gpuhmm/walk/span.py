"""Spans: the pages of consecutive extents, looked at and written one after the other.

``stop_of_span`` finds the lowest page at which a walk stops, ``write_span`` stores the words below
it, ``describe_stop`` says what the host must do there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm import HMM_PFN_REQ_WRITE, HMM_PFN_VALID, hmm_pte_need_fault
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


@shared("uint64(uint64, uint64, uint64, Walk, Array2, Array2, Array2, ChildArray, Array2, Array1)")
def stop_of_span(
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
) -> np.uint64:
    """Return the address at which a walk of ``[last, walk.end)`` stops first because of a page in
    ``[first, past)``, or ``NO_STOP``.  It may lie below ``first``, where the extent begins there.
    """
    va = first
    while va < past:
        extent = extent_at(va, last, walk, vmas, upper, child)
        if extent.kind == KIND_FORCED:
            return extent.start
        end = extent.end
        if end > past:
            end = past
        if may_fault(walk):
            stop = stop_of_extent(extent, va, end, walk, owners, leaf, hmm_pfns)
            if stop != NO_STOP:
                return stop
        va = end
    return NO_STOP


@shared("uint64(Extent, uint64, uint64, Walk, Array2, Array2, Array1)")
def stop_of_extent(
    extent: Extent,
    va: np.uint64,
    end: np.uint64,
    walk: Walk,
    owners: npt.NDArray[np.uint64],
    leaf: npt.NDArray[np.uint64],
    hmm_pfns: npt.NDArray[np.uint64],
) -> np.uint64:
    """Return where the pages ``[va, end)`` of one extent stop the walk, or ``NO_STOP``."""
    if extent.kind == KIND_LEAF:
        return stop_of_leaf(extent.row, va, end, walk, owners, leaf, hmm_pfns)
    if need_of_pages(extent, va, end, walk, hmm_pfns) != ZERO:
        return extent.start
    return NO_STOP


@shared("uint64(Extent, uint64, uint64, Walk, Array1)")
def need_of_pages(
    extent: Extent, va: np.uint64, end: np.uint64, walk: Walk, hmm_pfns: npt.NDArray[np.uint64]
) -> np.uint64:
    """Return the HMM_NEED_* bits of the pages ``[va, end)`` of an extent that is no leaf table."""
    if not asks_by_page(walk):
        return hmm_pte_need_fault(ZERO, extent.cpu_flags, walk.default_flags, walk.pfn_flags_mask)
    if extent.kind == KIND_FILL_FIRST:
        request = hmm_pfns[(extent.start - walk.start) >> PAGE_SHIFT]
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


@shared("uint64(uint64, uint64, uint64, Walk, Array2, Array2, Array1)")
def stop_of_leaf(
    row: np.uint64,
    va: np.uint64,
    end: np.uint64,
    walk: Walk,
    owners: npt.NDArray[np.uint64],
    leaf: npt.NDArray[np.uint64],
    hmm_pfns: npt.NDArray[np.uint64],
) -> np.uint64:
    """Return the first page of ``[va, end)`` of a leaf table that stops the walk, or ``NO_STOP``."""
    slot = (va >> PAGE_SHIFT) & INDEX_MASK
    count = (end - va) >> PAGE_SHIFT
    every, some = leaf_bits(row, slot, count, leaf)
    if is_plain(every, some, walk) and (
        (every & PAGE_RW) != ZERO
        or (((walk.default_flags | walk.pfn_flags_mask) & HMM_PFN_REQ_WRITE) == ZERO)
    ):
        return NO_STOP
    page = (va - walk.start) >> PAGE_SHIFT
    for i in range(count):
        request = ZERO
        if asks_by_page(walk):
            request = hmm_pfns[page + i]
        if pte_stop(leaf[row, slot + i], request, walk, owners)[0] != ACTION_NONE:
            return va + (i << PAGE_SHIFT)
    return NO_STOP


@shared("void(uint64, uint64, uint64, Walk, Array2, Array2, Array2, ChildArray, Array2, Array1)")
def write_span(
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
) -> None:
    """Store the words of ``[first, past)``, in which nothing stops the walk."""
    va = first
    while va < past:
        extent = extent_at(va, last, walk, vmas, upper, child)
        end = extent.end
        if end > past:
            end = past
        page = (va - walk.start) >> PAGE_SHIFT
        count = (end - va) >> PAGE_SHIFT
        if extent.kind == KIND_LEAF:
            write_leaf(extent.row, (va >> PAGE_SHIFT) & INDEX_MASK, count, page, walk, owners, leaf, hmm_pfns)
        else:
            word = extent.word + ((va - extent.start) >> PAGE_SHIFT) * extent.step
            for i in range(count):
                hmm_pfns[page + i] = word + i * extent.step
        va = end


@shared("void(uint64, uint64, uint64, uint64, Walk, Array2, Array2, Array1)")
def write_leaf(
    row: np.uint64,
    slot: np.uint64,
    count: np.uint64,
    page: np.uint64,
    walk: Walk,
    owners: npt.NDArray[np.uint64],
    leaf: npt.NDArray[np.uint64],
    hmm_pfns: npt.NDArray[np.uint64],
) -> None:
    """Store the words of ``count`` PTEs, in one pass without a branch where all are ordinary pages.

    Whether they were is known afterwards; the others are then written again, while in the cache.
    """
    every = ALL_ONES
    some = ZERO
    for i in range(count):
        pte = leaf[row, slot + i]
        every = every & pte
        some = some | pte
        hmm_pfns[page + i] = plain_word(pte)
    if is_plain(every, some, walk):
        return
    if is_sparse(row, slot, count, walk, leaf):
        for i in range(count):
            hmm_pfns[page + i] = sparse_word(leaf[row, slot + i])
    else:
        for i in range(count):
            hmm_pfns[page + i] = pte_word(leaf[row, slot + i], walk, owners)


@shared("UniTuple2(uint64, uint64, uint64, Array2)")
def leaf_bits(
    row: np.uint64, slot: np.uint64, count: np.uint64, leaf: npt.NDArray[np.uint64]
) -> tuple[np.uint64, np.uint64]:
    """Return the AND and the OR of ``count`` PTEs."""
    every = ALL_ONES
    some = ZERO
    for i in range(count):
        every = every & leaf[row, slot + i]
        some = some | leaf[row, slot + i]
    return every, some


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
