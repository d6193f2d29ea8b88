"""Faults in hugetlb areas.

Source: mm/hugetlb.c:hugetlb_fault, hugetlb_no_page, hugetlb_wp, make_huge_pte (v6.1).
"""

from __future__ import annotations

from gpuhmm.memory.fault.migration import is_migration_type, remove_migration_pte
from gpuhmm.memory.fault.vm_fault import Fault
from gpuhmm.memory.pages.page import PG_ANON, PG_ANON_EXCLUSIVE, PG_HUGETLB, PG_HWPOISON
from gpuhmm.mm.entry import DIRTY, PROTNONE, PSE, RW, A, P, is_none, mk_pte, pfn_of, save_dirty, swp_type_of
from gpuhmm.mm.handler import (
    VM_FAULT_HWPOISON_LARGE,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    vm_fault_set_hindex,
)
from gpuhmm.mm.vma import VM_SHARED, VM_UFFD_MISSING, VM_WRITE

#: Which hugetlb size it was is told with a poisoned page (hstate_index): 2 MiB is the second of them.
_HSTATE_INDEX = {30: 0, 21: 1}


def hugetlb_fault(vmf: Fault) -> int:
    """Serve a fault in a hugetlb area."""
    level = 3 if vmf.vma.page_shift == 30 else 2
    entry = vmf.entry(level)
    if not is_none(entry) and not entry & (P | PROTNONE):
        if is_migration_type(vmf.mm, swp_type_of(entry)):
            first = vmf.va & -(1 << vmf.vma.page_shift)
            remove_migration_pte(vmf.mm, vmf.vma, first, level)
            return 0
        if swp_type_of(entry) == vmf.mm.kernel.swp_hwpoison:
            return _hwpoison(vmf)
    if not vmf.alloc_tables(level):
        return VM_FAULT_OOM
    if is_none(entry) or (swp_type_of(entry) == vmf.mm.kernel.swp_pte_marker and not entry & (P | PROTNONE)):
        return hugetlb_no_page(vmf, level)
    if not entry & (P | PROTNONE):
        return 0
    if vmf.write and not entry & RW:
        return hugetlb_wp(vmf, level, entry)
    if vmf.write and entry | A | DIRTY != entry:
        vmf.store(level, entry | A | DIRTY)
    return 0


def hugetlb_no_page(vmf: Fault, level: int) -> int:
    """Map a page of the file's page cache, or of the pool; a private write copies in the same fault."""
    vma, memory = vmf.vma, vmf.memory
    order = vma.page_shift - 12
    index = vmf.index >> order << order
    file = vma.file
    pfn = None if file is None else file.lookup(index)
    if file is not None and index >= file.npages:
        return VM_FAULT_SIGBUS
    shared = bool(vma.flags & VM_SHARED)
    if pfn is None:
        if vma.flags & VM_UFFD_MISSING:
            return VM_FAULT_SIGBUS
        pfn = memory.alloc_huge_page(order)
        if pfn is None:
            return VM_FAULT_SIGBUS
        if shared and file is not None:
            file.insert(index, pfn, order)
        else:
            memory.pages.set_flags(pfn, PG_ANON | PG_ANON_EXCLUSIVE)
            memory.pages.set_place(pfn, 0, index)
    elif memory.pages.flags(pfn) & PG_HWPOISON:
        return _hwpoison(vmf)
    else:
        memory.pages.get(pfn)
    memory.pages.add_mapcount(pfn, 1)
    entry = make_huge_pte(vmf, pfn, shared and bool(vma.flags & VM_WRITE))
    vmf.store(level, entry)
    if vmf.write and not shared:
        return hugetlb_wp(vmf, level, entry)
    return 0


def make_huge_pte(vmf: Fault, pfn: int, writable: bool) -> int:
    """Return the entry of a hugetlb page."""
    entry = mk_pte(pfn, vmf.prot) | A | PSE
    return huge_pte_mkwrite(vmf, entry) if writable else entry


def huge_pte_mkwrite(vmf: Fault, entry: int) -> int:
    """Return the entry dirty and writable; huge_pte_mkwrite leaves a saved dirty bit where it is."""
    return save_dirty(vmf.mm.kernel, entry | DIRTY) | RW


def hugetlb_wp(vmf: Fault, level: int, entry: int) -> int:
    """Make a read-only page writable: as it is if it is shared memory or ours alone, else as a copy."""
    vma, memory = vmf.vma, vmf.memory
    order = vma.page_shift - 12
    if vma.flags & VM_SHARED:
        vmf.store(level, huge_pte_mkwrite(vmf, entry))
        return 0
    old = _old_page(vmf, entry)
    page = memory.pages.page(old)
    if page.mapcount == 1 and page.flags & PG_ANON:
        memory.pages.set_flags(old, PG_ANON_EXCLUSIVE)
        vmf.store(level, huge_pte_mkwrite(vmf, entry))
        return 0
    pfn = memory.alloc_huge_page(order)
    if pfn is None:
        return VM_FAULT_SIGBUS
    memory.pages.set_content(pfn, page.content)
    first = vmf.va & -(1 << vma.page_shift)
    with vmf.mm.subscriptions.invalidate_range(first, first + (1 << vma.page_shift)):
        memory.pages.add_mapcount(old, -1)
        memory.pages.add_mapcount(pfn, 1)
        memory.pages.set_flags(pfn, PG_ANON | PG_ANON_EXCLUSIVE)
        memory.pages.set_place(pfn, 0, vmf.index >> order << order)
        vmf.store(level, make_huge_pte(vmf, pfn, True))
        memory.put_page(old)
    return 0


def _old_page(vmf: Fault, entry: int) -> int:
    """Return the PFN that a hugetlb entry maps; one that nobody allocated here is adopted as shared."""
    order = vmf.vma.page_shift - 12
    pfn = pfn_of(entry)
    if not vmf.memory.pages.refcount(pfn):
        index = vmf.index >> order << order
        vmf.memory.adopt(pfn, order=order, anon=True, exclusive=False, index=index)
        vmf.memory.pages.fill(pfn, 1 << order, mapcount=0)
        vmf.memory.pages.add_mapcount(pfn, 2)
        vmf.memory.pages.set_flags(pfn, PG_HUGETLB)
    return pfn


def _hwpoison(vmf: Fault) -> int:
    return VM_FAULT_HWPOISON_LARGE | vm_fault_set_hindex(_HSTATE_INDEX[vmf.vma.page_shift])
