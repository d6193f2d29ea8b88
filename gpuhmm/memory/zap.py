"""Taking entries out of page tables and giving back what they mapped.

Source: mm/memory.c:zap_pte_range, zap_pmd_range, free_pgtables; mm/huge_memory.c:zap_huge_pmd;
mm/hugetlb.c:__unmap_hugepage_range (v6.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.memory.fault.huge import split_huge_pmd
from gpuhmm.memory.fault.vm_fault import Fault
from gpuhmm.memory.pages.page import PG_TABLE
from gpuhmm.memory.pages.rmap import huge_normal_page, page_remove_rmap, vm_normal_page
from gpuhmm.memory.pages.swapfile import slot_of
from gpuhmm.memory.pmd_range import walk_pmd_range
from gpuhmm.mm.entry import NONE, PMD_SIZE, PROTNONE, PSE, P, pfn_of, swp_offset, swp_pfn, swp_type_of
from gpuhmm.mm.tables import NO_CHILD
from gpuhmm.mm.vma import Vma
from gpuhmm.mm.x86 import level_shift

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace


def zap_page_range(mm: AddressSpace, vma: Vma, start: int, end: int) -> None:
    """Empty ``[start, end)`` of one area; huge pages that it cuts are split first."""
    if vma.is_hugetlb:
        _zap_hugetlb(mm, vma, start, end)
        return
    for part in walk_pmd_range(mm, start, end):
        if not part.is_table:
            if part.is_whole:
                zap_huge_pmd(mm, vma, part.va, part.pmd)
                continue
            if not part.pmd & (P | PROTNONE | PSE) or not split_huge_pmd(Fault(mm, vma, part.va, 0)):
                zap_huge_pmd(mm, vma, part.va & -PMD_SIZE, part.pmd)
                continue
            if mm.page_tables.row(part.va, 1) == NO_CHILD:
                continue  # a huge page of a file: the split has unmapped it
        zap_pte_range(mm, vma, part.va, part.past)


def zap_pte_range(mm: AddressSpace, vma: Vma, start: int, end: int) -> None:
    """Empty the PTEs of ``[start, end)``, all of one leaf table."""
    row, first, count = mm.page_tables.row(start, 1), start >> 12 & 511, (end - start) >> 12
    entries = mm.page_tables.leaf[row, first : first + count].copy()
    mm.page_tables.store(1, row, first, np.zeros(count, dtype=np.uint64))
    for i in np.flatnonzero(entries).tolist():
        drop_entry(mm, vma, start + (i << 12), int(entries[i]))


def drop_entry(mm: AddressSpace, vma: Vma, va: int, pte: int) -> None:
    """Give back what a PTE that is no longer in the table stood for."""
    memory, kernel = mm.memory, mm.kernel
    if not pte & ~NONE:
        return
    if pte & (P | PROTNONE):
        pfn = vm_normal_page(mm, vma, va, pte)
        if pfn is not None:
            page_remove_rmap(memory, pfn)
            memory.free_swap(pfn)
            memory.put_page(pfn)
        return
    swp_type = swp_type_of(pte)
    if swp_type < kernel.max_swapfiles:
        slot = slot_of(swp_type, swp_offset(pte))
        memory.swap.adopt(slot, 1)
        memory.swap_free(slot)
    elif swp_type in (
        kernel.swp_device_write,
        kernel.swp_device_read,
        kernel.swp_device_exclusive_write,
        kernel.swp_device_exclusive_read,
    ):
        pfn = swp_pfn(mm, pte)
        if memory.pages.refcount(pfn):
            page_remove_rmap(memory, pfn)
            memory.put_page(pfn)


def zap_huge_pmd(mm: AddressSpace, vma: Vma, va: int, pmd: int) -> None:
    """Empty a huge entry, which ``va`` is the first address of."""
    mm.page_tables.set_entry(va, 2, 0)
    if not pmd & (P | PROTNONE | PSE):
        return
    pfn = huge_normal_page(mm, vma, va, pmd)
    if pfn is not None:
        page_remove_rmap(mm.memory, pfn, 9)
        mm.memory.put_page(pfn)


def _zap_hugetlb(mm: AddressSpace, vma: Vma, start: int, end: int) -> None:
    level = 3 if vma.page_shift == 30 else 2
    for va in range(start, end, 1 << vma.page_shift):
        entry = mm.entry(va, level)
        if not entry & ~NONE:
            continue
        mm.page_tables.set_entry(va, level, 0)
        if not entry & (P | PROTNONE):
            continue
        pfn = pfn_of(entry)
        if mm.memory.pages.refcount(pfn):
            mm.memory.pages.add_mapcount(pfn, -1)
            mm.memory.put_page(pfn)


def free_pgtables(mm: AddressSpace, start: int, end: int) -> None:
    """Give back the tables that cover nothing but ``[start, end)`` and gaps around it, now empty."""
    before = [vma.end for vma in mm.vmas if vma.end <= start]
    after = mm.vmas.find(end)
    floor = max(before, default=0)
    ceiling = mm.task_size if after is None else max(after.start, end)
    for level in range(1, mm.levels):
        size = 1 << level_shift(level + 1)
        va = start & -size
        while va < end:
            if va >= floor and va + size <= ceiling:
                pfn = mm.page_tables.drop_table(va, level)
                if pfn is not None and mm.memory.pages.flags(pfn) & PG_TABLE:
                    mm.memory.put_page(pfn)
            shift = level_shift(max(mm.page_tables.lowest(va), level + 1))
            va = ((va >> shift) + 1) << shift  # where a table of this level may begin next
