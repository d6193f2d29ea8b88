"""Extents: the pieces of a range that ``walk_page_range()`` hands to one callback.

An extent is VMA ∩ range ∩ span of the table entry that ends the descent.  Any address of it leads
to it without looking at its neighbours, so that extents can be found in parallel.

Source: mm/pagewalk.c, mm/hmm.c (v5.18 to v7.3).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm.walk.arrays import Arrays
from gpuhmm.hmm.walk.constants import Walk
from gpuhmm.hmm.walk.pte import (
    ACTION_CLEAR,
    ACTION_EFAULT,
    ACTION_FAULT,
    ACTION_MISSING,
    ACTION_NONE,
    ACTION_SPLIT,
    ACTION_WAIT_PMD,
    device_private_word,
    is_device_private,
    is_migration,
    is_own_device_private,
    pte_to_hmm_pfn_flags,
)
from gpuhmm.hmm.words import HMM_PFN_ERROR, HMM_PFN_VALID, HMM_PFN_WRITE
from gpuhmm.mm.vma import VM_IO, VM_PFNMAP, VM_READ
from gpuhmm.mm.x86 import (
    INDEX_MASK,
    ONE,
    P4D_SHIFT,
    PAGE_SHIFT,
    PGDIR_SHIFT,
    PMD_SHIFT,
    PUD_SHIFT,
    U64,
    ZERO,
    entry_devmap,
    entry_none,
    entry_present,
    entry_protnone,
    entry_trans_huge,
    p4d_bad,
    pgd_bad,
    pgd_none,
    pmd_bad,
    pmd_pfn,
    pmd_present,
    pmd_write,
    pte_pfn,
    pud_huge,
    pud_pfn,
    pud_write,
    swp_type,
)
from gpuhmm.shared import shared

#: LEAF: a leaf table, page by page.  FILL: one word that counts up, need is the OR over its pages.
#: FILL_FIRST: the same, need is that of the first page (hugetlb).  FORCED: the walk stops anyway.
KIND_LEAF = U64(0)
KIND_FILL = U64(1)
KIND_FILL_FIRST = U64(2)
KIND_FORCED = U64(3)

#: The place of a VMA that is none.
NO_VMA = U64(0xFFFF_FFFF_FFFF_FFFF)

_PGD_LEVEL = U64(5)
_P4D_LEVEL = U64(4)
_PUD_LEVEL = U64(3)
_PMD_LEVEL = U64(2)

_PMD_ORDER = U64(9)
_PUD_ORDER = U64(18)

_VM_REJECTED = U64(VM_IO | VM_PFNMAP)
_VM_READ = U64(VM_READ)

_START = U64(0)
_END = U64(1)
_FLAGS = U64(2)
_SHIFT = U64(3)


class Extent(NamedTuple):
    """One extent, ``[start, end)`` bytes.

    ``row`` is that of the leaf table (LEAF), or the level of the entry to change (FORCED).
    ``word`` is the output of the first page and grows by ``step`` a page.  ``action`` follows when a
    page needs more than ``cpu_flags``.  ``vma`` is the place of its VMA, or ``NO_VMA``.
    """

    start: np.uint64
    end: np.uint64
    kind: np.uint64
    row: np.uint64
    word: np.uint64
    step: np.uint64
    cpu_flags: np.uint64
    action: np.uint64
    vma: np.uint64


@shared("uint64(uint64, Array2)")
def find_vma(va: np.uint64, vmas: npt.NDArray[np.uint64]) -> np.uint64:
    """Return the place of the first VMA that ends above ``va``; the number of VMAs if none does."""
    low = ZERO
    high = U64(vmas.shape[1])
    while low < high:
        middle = (low + high) >> ONE
        if vmas[_END, middle] > va:
            high = middle
        else:
            low = middle + ONE
    return low


@shared("Extent(uint64, uint64, Walk, Arrays)")
def extent_at(
    va: np.uint64,
    last: np.uint64,
    walk: Walk,
    arrays: Arrays,
) -> Extent:
    """Return the extent that holds ``va`` in a walk of ``[last, walk.end)``; ``last <= va < walk.end``."""
    count = U64(arrays.vmas.shape[1])
    place = find_vma(va, arrays.vmas)
    start = last
    end = walk.end
    if place == count or arrays.vmas[_START, place] > va:
        if place != ZERO and arrays.vmas[_END, place - ONE] > start:
            start = arrays.vmas[_END, place - ONE]
        if place != count and arrays.vmas[_START, place] < end:
            end = arrays.vmas[_START, place]
        if walk.no_vma_single_hole != ZERO:
            return hole(start, end, NO_VMA)
        return table_extent(va, start, end, NO_VMA, walk, arrays)

    if arrays.vmas[_START, place] > start:
        start = arrays.vmas[_START, place]
    if arrays.vmas[_END, place] < end:
        end = arrays.vmas[_END, place]
    flags = arrays.vmas[_FLAGS, place]
    if (flags & _VM_REJECTED) != ZERO or (flags & _VM_READ) == ZERO:
        return Extent(start, end, KIND_FILL, ZERO, HMM_PFN_ERROR, ZERO, ZERO, ACTION_EFAULT, place)
    shift = arrays.vmas[_SHIFT, place]
    if shift != PAGE_SHIFT:
        return hugetlb_extent(va, start, end, place, shift, walk, arrays)
    return table_extent(va, start, end, place, walk, arrays)


@shared("Extent(uint64, uint64, uint64, uint64, Walk, Arrays)")
def table_extent(
    va: np.uint64,
    start: np.uint64,
    end: np.uint64,
    vma: np.uint64,
    walk: Walk,
    arrays: Arrays,
) -> Extent:
    """Return the extent of ``va`` in the piece ``[start, end)`` by the walk from the top table down."""
    row = ZERO
    if walk.levels == _PGD_LEVEL:
        slot = (va >> PGDIR_SHIFT) & INDEX_MASK
        entry = arrays.upper[row, slot]
        first = span_start(va, start, PGDIR_SHIFT)
        past = span_end(va, end, PGDIR_SHIFT)
        if pgd_none(entry):
            return hole(first, past, vma)
        if pgd_bad(entry):
            return forced(first, past, ACTION_CLEAR, _PGD_LEVEL, vma)
        if arrays.child[row, slot] < 0:
            return forced(first, past, ACTION_MISSING, _PGD_LEVEL, vma)
        row = U64(arrays.child[row, slot])

    slot = (va >> P4D_SHIFT) & INDEX_MASK
    entry = arrays.upper[row, slot]
    first = span_start(va, start, P4D_SHIFT)
    past = span_end(va, end, P4D_SHIFT)
    if entry_none(entry):
        return hole(first, past, vma)
    if p4d_bad(entry):
        return forced(first, past, ACTION_CLEAR, _P4D_LEVEL, vma)
    if arrays.child[row, slot] < 0:
        return forced(first, past, ACTION_MISSING, _P4D_LEVEL, vma)
    row = U64(arrays.child[row, slot])

    slot = (va >> PUD_SHIFT) & INDEX_MASK
    entry = arrays.upper[row, slot]
    first = span_start(va, start, PUD_SHIFT)
    past = span_end(va, end, PUD_SHIFT)
    if entry_none(entry) or vma == NO_VMA:
        return hole(first, past, vma)
    if entry_trans_huge(entry, walk.page_devmap) or entry_devmap(entry, walk.page_devmap):
        return pud_extent(entry, first, past, vma, walk)
    if arrays.child[row, slot] < 0:
        return forced(first, past, ACTION_MISSING, _PUD_LEVEL, vma)
    row = U64(arrays.child[row, slot])

    slot = (va >> PMD_SHIFT) & INDEX_MASK
    entry = arrays.upper[row, slot]
    first = span_start(va, start, PMD_SHIFT)
    past = span_end(va, end, PMD_SHIFT)
    if entry_none(entry):
        return hole(first, past, vma)
    is_huge = entry_trans_huge(entry, walk.page_devmap) or entry_devmap(entry, walk.page_devmap)
    if not pmd_present(entry) or is_huge:
        return pmd_extent(entry, first, past, vma, walk, arrays)
    if pmd_bad(entry, walk.pmd_bad_ignores):
        return Extent(first, past, KIND_FILL, ZERO, HMM_PFN_ERROR, ZERO, ZERO, ACTION_EFAULT, vma)
    if arrays.child[row, slot] < 0:
        return forced(first, past, ACTION_MISSING, _PMD_LEVEL, vma)
    leaf = U64(arrays.child[row, slot])
    return Extent(first, past, KIND_LEAF, leaf, ZERO, ZERO, ZERO, ACTION_NONE, vma)


@shared("Extent(uint64, uint64, uint64, uint64, Walk)")
def pud_extent(entry: np.uint64, start: np.uint64, end: np.uint64, vma: np.uint64, walk: Walk) -> Extent:
    """hmm_vma_walk_pud, for a PUD that is trans_huge or devmap."""
    present = entry_present(entry)
    if walk.absent_pud_is_hole != ZERO and not present:
        return hole(start, end, vma)
    # Where there is a DAX bit, only a PUD with it is a leaf, and another one is split.
    if walk.page_devmap != ZERO and not (pud_huge(entry) and entry_devmap(entry, walk.page_devmap)):
        return forced(start, end, ACTION_SPLIT, _PUD_LEVEL, vma)
    if not present:
        return hole(start, end, vma)
    cpu_flags = HMM_PFN_VALID | (_PUD_ORDER << walk.hmm_pfn_order_shift)
    if pud_write(entry):
        cpu_flags = cpu_flags | HMM_PFN_WRITE
    pfn = pud_pfn(entry) + ((start & ((ONE << PUD_SHIFT) - ONE)) >> PAGE_SHIFT)
    return Extent(start, end, KIND_FILL, ZERO, pfn | cpu_flags, ONE, cpu_flags, ACTION_FAULT, vma)


@shared("Extent(uint64, uint64, uint64, uint64, Walk, Arrays)")
def pmd_extent(
    entry: np.uint64, start: np.uint64, end: np.uint64, vma: np.uint64, walk: Walk, arrays: Arrays
) -> Extent:
    """hmm_vma_walk_pmd, for a PMD that is not present, trans_huge or devmap."""
    order = _PMD_ORDER << walk.hmm_pfn_order_shift
    if not pmd_present(entry):
        if is_migration(swp_type(entry), walk):
            return Extent(start, end, KIND_FILL, ZERO, ZERO, ZERO, ZERO, ACTION_WAIT_PMD, vma)
        if walk.device_private_pmd != ZERO and is_device_private(entry, walk):
            return device_private_pmd_extent(entry, start, end, vma, walk, arrays)
        return Extent(start, end, KIND_FILL, ZERO, HMM_PFN_ERROR, ZERO, ZERO, ACTION_EFAULT, vma)
    cpu_flags = ZERO
    if not entry_protnone(entry):
        cpu_flags = HMM_PFN_VALID | order
        if pmd_write(entry, walk.shadow_stack):
            cpu_flags = cpu_flags | HMM_PFN_WRITE
    pfn = pmd_pfn(entry) + ((start & ((ONE << PMD_SHIFT) - ONE)) >> PAGE_SHIFT)
    return Extent(start, end, KIND_FILL, ZERO, pfn | cpu_flags, ONE, cpu_flags, ACTION_FAULT, vma)


@shared("Extent(uint64, uint64, uint64, uint64, Walk, Arrays)")
def device_private_pmd_extent(
    entry: np.uint64, start: np.uint64, end: np.uint64, vma: np.uint64, walk: Walk, arrays: Arrays
) -> Extent:
    """hmm_vma_handle_absent_pmd, for a device-private PMD (v6.18).

    The first page gets the entry's own PFN, wherever in the 2 MiB the extent begins, as in the kernel.
    """
    if not is_own_device_private(entry, walk, arrays.owners):
        return Extent(start, end, KIND_FILL, ZERO, HMM_PFN_ERROR, ZERO, ZERO, ACTION_FAULT, vma)
    word = device_private_word(entry, walk) | (_PMD_ORDER << walk.hmm_pfn_order_shift)
    granted = HMM_PFN_VALID | HMM_PFN_WRITE  # requests are not consulted
    return Extent(start, end, KIND_FILL, ZERO, word, ONE, granted, ACTION_NONE, vma)


@shared("Extent(uint64, uint64, uint64, uint64, uint64, Walk, Arrays)")
def hugetlb_extent(
    va: np.uint64,
    start: np.uint64,
    end: np.uint64,
    vma: np.uint64,
    shift: np.uint64,
    walk: Walk,
    arrays: Arrays,
) -> Extent:
    """walk_hugetlb_range with huge_pte_offset, and hmm_vma_walk_hugetlb_entry."""
    first = span_start(va, start, shift)
    past = span_end(va, end, shift)
    row = ZERO
    at = PGDIR_SHIFT
    level = _PGD_LEVEL
    if walk.levels != _PGD_LEVEL:
        at = P4D_SHIFT
        level = _P4D_LEVEL
    while at > shift:
        slot = (va >> at) & INDEX_MASK
        if not entry_present(arrays.upper[row, slot]):
            return hole(first, past, vma)
        if arrays.child[row, slot] < 0:
            return forced(first, past, ACTION_MISSING, level, vma)
        row = U64(arrays.child[row, slot])
        at = at - U64(9)
        level = level - ONE
    entry = arrays.upper[row, (va >> shift) & INDEX_MASK]
    cpu_flags = pte_to_hmm_pfn_flags(entry, walk) | ((shift - PAGE_SHIFT) << walk.hmm_pfn_order_shift)
    pfn = pte_pfn(entry) + ((first & ((ONE << shift) - ONE)) >> PAGE_SHIFT)
    return Extent(first, past, KIND_FILL_FIRST, ZERO, pfn | cpu_flags, ONE, cpu_flags, ACTION_FAULT, vma)


@shared("Extent(uint64, uint64, uint64)")
def hole(start: np.uint64, end: np.uint64, vma: np.uint64) -> Extent:
    """hmm_vma_walk_hole."""
    if vma == NO_VMA:
        return Extent(start, end, KIND_FILL, ZERO, HMM_PFN_ERROR, ZERO, ZERO, ACTION_EFAULT, vma)
    return Extent(start, end, KIND_FILL, ZERO, ZERO, ZERO, ZERO, ACTION_FAULT, vma)


@shared("Extent(uint64, uint64, uint64, uint64, uint64)")
def forced(start: np.uint64, end: np.uint64, action: np.uint64, level: np.uint64, vma: np.uint64) -> Extent:
    """An extent at which the walk stops whatever is asked."""
    return Extent(start, end, KIND_FORCED, level, ZERO, ZERO, ZERO, action, vma)


@shared("uint64(uint64, uint64, uint64)")
def span_start(va: np.uint64, start: np.uint64, shift: np.uint64) -> np.uint64:
    """Where the entry over ``va`` begins, clipped by ``start``."""
    first = (va >> shift) << shift
    if first < start:
        return start
    return first


@shared("uint64(uint64, uint64, uint64)")
def span_end(va: np.uint64, end: np.uint64, shift: np.uint64) -> np.uint64:
    """Where the entry over ``va`` ends, clipped by ``end``."""
    past = ((va >> shift) + ONE) << shift
    if past > end:
        return end
    return past
