"""fork: a child that shares every private page until one of the two writes.

Source: mm/memory.c:copy_page_range, copy_present_pte, copy_nonpresent_pte; mm/huge_memory.c:copy_huge_pmd;
mm/hugetlb.c:copy_hugetlb_page_range (v6.1).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from errno import ENOMEM
from typing import TYPE_CHECKING

from gpuhmm.memory.fault.huge import split_huge_pmd
from gpuhmm.memory.fault.migration import is_migration_type
from gpuhmm.memory.fault.swap import remove_device_exclusive_entry
from gpuhmm.memory.fault.vm_fault import Fault, alloc_tables
from gpuhmm.memory.mmap import exit_mmap
from gpuhmm.memory.pages.page import PG_ANON
from gpuhmm.memory.pages.rmap import (
    huge_normal_page,
    page_add_new_anon_rmap,
    page_add_rmap,
    page_try_dup_anon_rmap,
    vm_normal_page,
)
from gpuhmm.memory.pages.swapfile import slot_of
from gpuhmm.memory.pmd_range import PmdPart, walk_pmd_range
from gpuhmm.mm.entry import (
    DIRTY,
    NONE,
    PROTNONE,
    PSE,
    RW,
    SWP_EXCLUSIVE,
    SWP_UFFD_WP,
    UFFD_WP,
    A,
    P,
    encode_swap,
    lasting_marker,
    pfn_of,
    swp_offset,
    swp_pfn,
    swp_type_of,
    swp_with_type,
    wrprotect,
)
from gpuhmm.mm.mmap_lock import write_locked
from gpuhmm.mm.notifier import MMU_NOTIFY_CLEAR, MMU_NOTIFY_PROTECTION_PAGE
from gpuhmm.mm.vma import VM_LOCKED, VM_MIXEDMAP, VM_PFNMAP, VM_SHARED, VM_UFFD_MISSING, VM_UFFD_WP, Vma

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace


@write_locked
def fork(mm: AddressSpace) -> AddressSpace | int:
    """Return a child of ``mm`` on the same machine, served by the same fault handler; -ENOMEM without memory.

    Private pages become read-only in both: event PROTECTION_PAGE over each private area of the parent that
    has pages of its own, CLEAR over hugetlb ones.
    """
    memory = mm.memory
    root = memory.alloc_table()
    if root is None:
        return -ENOMEM
    for vma in [vma for vma in mm.vmas if vma.flags & VM_SHARED and vma.file is None]:
        mm.give_file(vma)
    dropped = VM_LOCKED | VM_UFFD_MISSING | VM_UFFD_WP
    child = type(mm)(
        levels=mm.levels,
        root_pfn=root,
        vmas=[replace(vma, flags=vma.flags & ~dropped) for vma in mm.vmas],
        kernel=mm.kernel,
        zero_pfn=mm.zero_pfn,
        huge_zero_pfn=mm.huge_zero_pfn,
        highest_memmap_pfn=mm.highest_memmap_pfn,
        shstk=mm.shstk,
        faults=mm.faults,
        memory=memory,
    )
    child.device_private = mm.device_private.copy()
    for vma in list(mm.vmas):
        if not _copy_area(mm, child, vma):
            exit_mmap(child)
            return -ENOMEM
    return child


def _copy_area(mm: AddressSpace, child: AddressSpace, vma: Vma) -> bool:
    """Copy the entries of one area; False if memory ran out."""
    private = not vma.flags & VM_SHARED
    if vma.is_hugetlb:
        with _invalidation(mm, vma, private, MMU_NOTIFY_CLEAR):
            return _copy_hugetlb(mm, child, vma, private)
    if not vma.flags & (VM_PFNMAP | VM_MIXEDMAP) and not (private and _has_anon_pages(mm, vma)):
        return True  # faults will fill it in as well
    with _invalidation(mm, vma, private, MMU_NOTIFY_PROTECTION_PAGE):
        return all(
            _copy_pmd(mm, child, vma, part, private) for part in walk_pmd_range(mm, vma.start, vma.end)
        )


def _invalidation(mm: AddressSpace, vma: Vma, private: bool, event: int) -> AbstractContextManager[object]:
    if not private:
        return nullcontext()
    return mm.subscriptions.invalidate_range(vma.start, vma.end, event=event)


def _has_anon_pages(mm: AddressSpace, vma: Vma) -> bool:
    """True if the area has pages of its own, or had before they were swapped out (anon_vma)."""
    for part in walk_pmd_range(mm, vma.start, vma.end):
        if not part.is_table:
            if not part.pmd & mm.kernel.page_devmap:
                return True
            continue
        for va in part.ptes:
            pte = int(mm.page_tables.leaf[part.row, va >> 12 & 511])
            if not pte & ~NONE:
                continue
            if not pte & (P | PROTNONE):
                return True
            pfn = vm_normal_page(mm, vma, va, pte)
            if pfn is not None and mm.memory.pages.flags(pfn) & PG_ANON:
                return True
    return False


def _copy_pmd(mm: AddressSpace, child: AddressSpace, vma: Vma, part: PmdPart, private: bool) -> bool:
    if not part.is_table:
        copied = _copy_huge_pmd(mm, child, vma, part.va, part.pmd)
        if copied is not None:
            return copied
    if not alloc_tables(child, part.va, 1):
        return False
    return all(_copy_pte(mm, child, vma, va, private) for va in part.ptes)


def _copy_huge_pmd(mm: AddressSpace, child: AddressSpace, vma: Vma, va: int, pmd: int) -> bool | None:
    """Copy a huge entry; None once it is split because its page is pinned."""
    if not vma.is_anonymous:
        return True
    if not pmd & (P | PROTNONE | PSE):
        readable = _readable_migration(mm, pmd)
        mm.page_tables.set_entry(va, 2, readable)
        return _store(child, va, 2, readable)
    pfn = huge_normal_page(mm, vma, va, pmd)
    if pfn is not None and not page_try_dup_anon_rmap(mm.memory, pfn, 9):
        split_huge_pmd(Fault(mm, vma, va, 0))
        return None
    pmd = wrprotect(mm.kernel, pmd)
    mm.page_tables.set_entry(va, 2, pmd)
    return _store(child, va, 2, pmd & ~A)


def _store(mm: AddressSpace, va: int, level: int, entry: int) -> bool:
    if not alloc_tables(mm, va, level):
        return False
    mm.page_tables.set_entry(va, level, entry)
    return True


def _copy_pte(mm: AddressSpace, child: AddressSpace, vma: Vma, va: int, private: bool) -> bool:
    pte = mm.entry(va, 1)
    if not pte & ~NONE:
        return True
    if not pte & (P | PROTNONE):
        kernel = mm.kernel
        exclusive = (kernel.swp_device_exclusive_write, kernel.swp_device_exclusive_read)
        if swp_type_of(pte) not in exclusive:
            return _copy_nonpresent_pte(mm, child, va, pte, private)
        remove_device_exclusive_entry(Fault(mm, vma, va, 0), pte)
        pte = mm.entry(va, 1)
    memory = mm.memory
    pfn = vm_normal_page(mm, vma, va, pte)
    if pfn is not None and memory.pages.flags(pfn) & PG_ANON:
        if not page_try_dup_anon_rmap(memory, pfn):
            return _copy_pinned(child, vma, va, pte, pfn)
    elif pfn is not None:
        memory.pages.get(pfn)
        page_add_rmap(memory, pfn)
    if private and pte & RW:
        pte = wrprotect(mm.kernel, pte)
        mm.page_tables.set_entry(va, 1, pte)
    child.page_tables.set_entry(va, 1, pte & ~(A | UFFD_WP | (0 if private else mm.kernel.dirty_bits)))
    return True


def _copy_pinned(child: AddressSpace, vma: Vma, va: int, pte: int, pfn: int) -> bool:
    """A page that is pinned stays the parent's; the child gets a copy at once (copy_present_page)."""
    memory = child.memory
    copy = memory.alloc_page()
    if copy is None:
        return False
    memory.pages.set_content(copy, memory.pages.content(pfn))
    page_add_new_anon_rmap(memory, copy, vma.index(va))
    vmf = Fault(child, vma, va, 0)
    child.page_tables.set_entry(va, 1, vmf.maybe_mkwrite(copy << 12 | vmf.prot | DIRTY))
    return True


def _copy_nonpresent_pte(mm: AddressSpace, child: AddressSpace, va: int, pte: int, private: bool) -> bool:
    memory, kernel = mm.memory, mm.kernel
    swp_type = swp_type_of(pte)
    if swp_type < kernel.max_swapfiles:
        slot = slot_of(swp_type, swp_offset(pte))
        memory.swap.adopt(slot, 1)
        memory.swap.duplicate(slot)
        pte &= ~SWP_EXCLUSIVE
    elif is_migration_type(mm, swp_type):
        pte = _readable_migration(mm, pte) if private else pte
    elif swp_type in (kernel.swp_device_write, kernel.swp_device_read):
        page_try_dup_anon_rmap(memory, swp_pfn(mm, pte))
        if private and swp_type == kernel.swp_device_write:
            pte = swp_with_type(pte, kernel.swp_device_read)
    elif swp_type == kernel.swp_pte_marker:
        lasting = lasting_marker(kernel, pte)  # the child has no userfaultfd
        if lasting:
            child.page_tables.set_entry(va, 1, encode_swap(swp_type, lasting))
        return True
    mm.page_tables.set_entry(va, 1, pte)
    child.page_tables.set_entry(va, 1, pte & ~SWP_UFFD_WP)
    return True


def _readable_migration(mm: AddressSpace, entry: int) -> int:
    return swp_with_type(entry, mm.kernel.swp_migration_read)


def _copy_hugetlb(mm: AddressSpace, child: AddressSpace, vma: Vma, private: bool) -> bool:
    level = 3 if vma.page_shift == 30 else 2
    for va in range(vma.start, vma.end, 1 << vma.page_shift):
        entry = mm.entry(va, level)
        if not entry & ~NONE:
            continue
        if entry & (P | PROTNONE):
            pfn = pfn_of(entry)
            if private:
                entry = wrprotect(mm.kernel, entry)
                mm.page_tables.set_entry(va, level, entry)
            if mm.memory.pages.refcount(pfn):
                page_try_dup_anon_rmap(mm.memory, pfn)
        if not _store(child, va, level, entry):
            return False
    return True
