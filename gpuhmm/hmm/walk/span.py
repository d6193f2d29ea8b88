"""Spans: the pages of consecutive extents, looked at one after the other.

``find_stop`` finds the lowest page at which a walk stops, ``describe_stop`` says what the host must do
there.
"""

from __future__ import annotations

import numpy as np

from gpuhmm.hmm.walk.arrays import Arrays
from gpuhmm.hmm.walk.constants import Walk, asks_by_page
from gpuhmm.hmm.walk.extent import KIND_FILL_FIRST, KIND_FORCED, KIND_LEAF, Extent, extent_at
from gpuhmm.hmm.walk.leaf import leaf_stop
from gpuhmm.hmm.walk.pte import pte_stop
from gpuhmm.hmm.words import hmm_pte_need_fault
from gpuhmm.mm.x86 import ALL_ONES, INDEX_MASK, ONE, PAGE_SHIFT, ZERO
from gpuhmm.shared import shared

#: No page of the span stops the walk.
NO_STOP = ALL_ONES


@shared("UniTuple2(uint64, uint64, uint64, Walk, Arrays)")
def find_stop(
    first: np.uint64,
    past: np.uint64,
    last: np.uint64,
    walk: Walk,
    arrays: Arrays,
) -> tuple[np.uint64, np.uint64]:
    """Return the first address of ``[first, past)`` that stops a walk of ``[last, walk.end)``.

    ``NO_STOP`` if none does.  The stop may lie below ``first``, where its extent begins there.  The
    second result is ONE if needs beyond the span count as well: it cuts an extent whose need is an
    OR over pages.
    """
    cut = ZERO
    va = first
    while va < past:
        extent = extent_at(va, last, walk, arrays)
        end = extent.end
        if end > past:
            end = past
        if extent.kind == KIND_LEAF:
            count = (end - va) >> PAGE_SHIFT
            page = (va - walk.start) >> PAGE_SHIFT
            slot = (va >> PAGE_SHIFT) & INDEX_MASK
            stop = leaf_stop(extent.row, slot, count, page, walk, arrays)
            if stop < count:
                return va + (stop << PAGE_SHIFT), cut
        elif extent.kind == KIND_FORCED:
            return extent.start, cut
        else:
            if need_of_pages(extent, va, end, walk, arrays) != ZERO:
                return extent.start, cut
            if asks_by_page(walk) and (extent.start < va or extent.end > past):
                cut = ONE
        va = end
    return NO_STOP, cut


@shared("uint64(Extent, uint64, uint64, Walk, Arrays)")
def need_of_pages(extent: Extent, va: np.uint64, end: np.uint64, walk: Walk, arrays: Arrays) -> np.uint64:
    """Return the HMM_NEED_* bits of the pages ``[va, end)`` of an extent that is no leaf table."""
    if extent.kind == KIND_FILL_FIRST and va != extent.start:
        return ZERO  # who looks at the first page decides
    if not asks_by_page(walk):
        return hmm_pte_need_fault(ZERO, extent.cpu_flags, walk.default_flags, walk.pfn_flags_mask)
    if extent.kind == KIND_FILL_FIRST:
        request = arrays.hmm_pfns[(va - walk.start) >> PAGE_SHIFT]
        return hmm_pte_need_fault(request, extent.cpu_flags, walk.default_flags, walk.pfn_flags_mask)
    need = ZERO
    page = (va - walk.start) >> PAGE_SHIFT
    for i in range((end - va) >> PAGE_SHIFT):
        need = need | hmm_pte_need_fault(
            arrays.hmm_pfns[page + i], extent.cpu_flags, walk.default_flags, walk.pfn_flags_mask
        )
    return need


@shared("UniTuple5(uint64, Walk, Arrays)")
def describe_stop(
    va: np.uint64,
    walk: Walk,
    arrays: Arrays,
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64]:
    """Return ACTION_*, HMM_NEED_*, end of the extent, place of the VMA and level of a stop at ``va``."""
    extent = extent_at(va, va, walk, arrays)
    if extent.kind == KIND_FORCED:
        return extent.action, ZERO, extent.end, extent.vma, extent.row
    if extent.kind == KIND_LEAF:
        request = ZERO
        if asks_by_page(walk):
            request = arrays.hmm_pfns[(va - walk.start) >> PAGE_SHIFT]
        action, need = pte_stop(
            arrays.leaf[extent.row, (va >> PAGE_SHIFT) & INDEX_MASK], request, walk, arrays.owners
        )
        return action, need, extent.end, extent.vma, ONE
    need = need_of_pages(extent, va, extent.end, walk, arrays)
    return extent.action, need, extent.end, extent.vma, ONE
