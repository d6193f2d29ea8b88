"""Pages that go to swap.

Source: mm/madvise.c:madvise_pageout; mm/vmscan.c:shrink_folio_list; mm/rmap.c:try_to_unmap_one;
mm/shmem.c:shmem_writepage (v6.1).
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from gpuhmm.memory.mmap import invalid_range
from gpuhmm.memory.pages.page import PG_ANON, PG_ANON_EXCLUSIVE, PG_FILE, PG_KSM, PG_LAZYFREE, PG_SWAPCACHE
from gpuhmm.memory.pages.rmap import page_remove_rmap, vm_normal_page
from gpuhmm.memory.pages.swapfile import SLOT_TYPE_SHIFT
from gpuhmm.memory.pmd_range import split_to_ptes, walk_pmd_range
from gpuhmm.mm.entry import NONE, PROTNONE, SWP_EXCLUSIVE, P, encode_swap, swp_flags
from gpuhmm.mm.mmap_lock import write_locked
from gpuhmm.mm.vma import VM_LOCKED, VM_PFNMAP, Vma

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace


@write_locked
def swap_out(mm: AddressSpace, start: int, end: int) -> int:
    """Write the pages of ``[start, end)`` out that only this space maps; return how many went.

    -EINVAL for a range that cannot be, or in a locked or special area.  Event CLEAR, a page each.  Pinned
    pages, pages that others map and, when swap is full, all the rest stay.
    """
    if invalid_range(mm, start, end):
        return -EINVAL
    areas = mm.vmas.overlapping(start, end)
    if any(vma.flags & (VM_LOCKED | VM_PFNMAP) or vma.is_hugetlb for vma in areas):
        return -EINVAL
    gone = 0
    for vma in areas:
        for part in walk_pmd_range(mm, max(start, vma.start), min(end, vma.end)):
            present = part.pmd & (P | PROTNONE)
            if part.is_table or (present and split_to_ptes(mm, vma, part.va)):
                gone += sum(_page_out(mm, vma, va) for va in part.ptes)
    return gone


def _page_out(mm: AddressSpace, vma: Vma, va: int) -> bool:
    pte = mm.entry(va, 1)
    if not pte & (P | PROTNONE) or not pte & ~NONE:
        return False
    memory = mm.memory
    pfn = vm_normal_page(mm, vma, va, pte)
    if pfn is None:
        return False
    page = memory.pages.page(pfn)
    if page.flags & PG_KSM or page.mapcount != 1 or memory.device_of(pfn) is not None:
        return False
    if page.order:
        if memory.pages.refcount(pfn) != sum(
            memory.pages.mapcount(memory.pages.head(pfn) + i) for i in range(1 << page.order)
        ):
            return False  # somebody holds the huge page: it cannot be split
        memory.split_huge_page(pfn)
    held = 1 + bool(page.flags & PG_FILE) + bool(page.flags & PG_SWAPCACHE)
    if memory.pages.refcount(pfn) != held:
        return False
    if page.flags & PG_FILE:
        return _file_page_out(mm, va, pfn)
    if page.flags & PG_ANON:
        return _anon_page_out(mm, va, pte, pfn)
    return False


def _anon_page_out(mm: AddressSpace, va: int, pte: int, pfn: int) -> bool:
    memory = mm.memory
    flags = memory.pages.flags(pfn)
    entry = 0
    if not flags & PG_LAZYFREE or pte & mm.kernel.dirty_bits:
        slot = memory.swap.slot_of_page(pfn)
        if slot is None:
            slot = memory.swap.alloc()
        if slot is None:
            return False
        memory.swap.write(slot, memory.pages.content(pfn))
        memory.swap.duplicate(slot)
        entry = encode_swap(slot >> SLOT_TYPE_SHIFT, slot & ((1 << 50) - 1)) | swp_flags(pte)
        if flags & PG_ANON_EXCLUSIVE:
            entry |= SWP_EXCLUSIVE
        if flags & PG_SWAPCACHE:
            memory.delete_from_swap_cache(slot, pfn)
    with mm.subscriptions.invalidate_range(va, va + 4096):
        mm.page_tables.set_entry(va, 1, entry)
        page_remove_rmap(memory, pfn)
        memory.put_page(pfn)
    return True


def _file_page_out(mm: AddressSpace, va: int, pfn: int) -> bool:
    """Unmap a page of a file; shared memory goes to swap, the page of a disk's file is just dropped."""
    memory = mm.memory
    page = memory.pages.page(pfn)
    file = memory.file(page.mapping)
    if file.kind.in_memory:
        if file.kind.name != "shmem":
            return False
        slot = memory.swap.alloc()
        if slot is None:
            return False
        memory.swap.write(slot, page.content)
        memory.swap.duplicate(slot)
        file.set_slot(page.index, slot)
    with mm.subscriptions.invalidate_range(va, va + 4096):
        mm.page_tables.set_entry(va, 1, 0)
        page_remove_rmap(memory, pfn)
        memory.put_page(pfn)
    file.remove(page.index)
    return True
