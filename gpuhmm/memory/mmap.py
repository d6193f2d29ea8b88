"""Areas that go: munmap, and the end of an address space.

Source: mm/mmap.c:do_munmap, unmap_region, exit_mmap; mm/memory.c:unmap_vmas (v6.1).
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from gpuhmm.memory.pages.page import PG_TABLE
from gpuhmm.memory.zap import free_pgtables, zap_page_range
from gpuhmm.mm.mmap_lock import write_locked
from gpuhmm.mm.notifier import MMU_NOTIFY_RELEASE, MMU_NOTIFY_UNMAP

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace


def invalid_range(mm: AddressSpace, start: int, end: int) -> bool:
    """True for what a system call answers with -EINVAL: unaligned, empty, or beyond the address space."""
    return bool(start % 4096 or end % 4096) or not 0 <= start < end <= mm.task_size


def cuts_hugetlb(mm: AddressSpace, start: int, end: int) -> bool:
    """True if ``start`` or ``end`` lies inside a page of a hugetlb area."""
    for va in (start, end):
        vma = mm.vmas.lookup(va)
        if vma is not None and vma.is_hugetlb and (va - vma.start) & ((1 << vma.page_shift) - 1):
            return True
    return False


@write_locked
def munmap(mm: AddressSpace, start: int, end: int) -> int:
    """Remove areas and their pages in ``[start, end)``; 0, or -EINVAL for a range that cannot be.

    Event UNMAP over the range, if an area is in it.
    """
    if invalid_range(mm, start, end) or cuts_hugetlb(mm, start, end):
        return -EINVAL
    gone = mm.vmas.cover(start, end)
    if not gone:
        return 0
    with mm.subscriptions.invalidate_range(start, end, event=MMU_NOTIFY_UNMAP):
        for vma in gone:
            zap_page_range(mm, vma, vma.start, vma.end)
    mm.vmas.remove(start, end)
    free_pgtables(mm, start, end)
    return 0


@write_locked
def exit_mmap(mm: AddressSpace) -> None:
    """End the address space: all notifiers hear RELEASE, then UNMAP; all pages and tables are given back."""
    memory = mm.memory
    with mm.subscriptions.invalidate_range(0, mm.task_size, event=MMU_NOTIFY_RELEASE):
        pass
    with mm.subscriptions.invalidate_range(0, mm.task_size, event=MMU_NOTIFY_UNMAP):
        for vma in list(mm.vmas):
            zap_page_range(mm, vma, vma.start, vma.end)
    mm.vmas.remove(0, mm.task_size)
    free_pgtables(mm, 0, mm.task_size)
    if memory.pages.flags(mm.root_pfn) & PG_TABLE:
        memory.put_page(mm.root_pfn)
    if mm in memory.spaces:
        memory.spaces.remove(mm)
