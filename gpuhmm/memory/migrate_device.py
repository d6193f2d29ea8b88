"""Pages that move between system memory and a device, and pages that a device has for itself.

Source: mm/migrate_device.c:migrate_vma_setup, migrate_vma_pages; mm/rmap.c:make_device_exclusive_range;
lib/test_hmm.c:dmirror_migrate_alloc_and_copy (v6.1).
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuhmm.memory.fault.device import device_private_to_ram
from gpuhmm.memory.fault.handle import handle_mm_fault
from gpuhmm.memory.fault.huge import split_huge_pmd
from gpuhmm.memory.fault.vm_fault import Fault, alloc_tables
from gpuhmm.memory.mmap import invalid_range
from gpuhmm.memory.pages.device import DeviceMemory
from gpuhmm.memory.pages.page import PG_ANON, PG_ANON_EXCLUSIVE, PG_DEVICE, PG_KSM
from gpuhmm.memory.pages.rmap import page_add_anon_rmap, page_remove_rmap, vm_normal_page
from gpuhmm.memory.pmd_range import split_to_ptes
from gpuhmm.mm.entry import (
    DIRTY,
    NONE,
    PFN,
    PROTNONE,
    RW,
    SPECIAL,
    P,
    encode_swap,
    mk_pte,
    pfn_of,
    swp_flags,
    swp_pfn,
    swp_type_of,
)
from gpuhmm.mm.handler import FAULT_FLAG_WRITE, VM_FAULT_ERROR
from gpuhmm.mm.mmap_lock import write_locked
from gpuhmm.mm.notifier import MMU_NOTIFY_EXCLUSIVE, MMU_NOTIFY_MIGRATE
from gpuhmm.mm.tables import NO_CHILD, Words
from gpuhmm.mm.vma import VM_READ, VM_SHARED, VM_SPECIAL, VM_WRITE, Vma
from gpuhmm.mm.x86 import NO_PFN

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

Moved = npt.NDArray[np.bool_]


@write_locked
def migrate_to_ram(mm: AddressSpace, start: int, end: int, device: DeviceMemory) -> Moved:
    """Bring the pages of ``device`` in ``[start, end)`` back; return which came, bool[npages].

    Event MIGRATE with the device's owner, over the range.
    """
    moved = np.zeros((end - start) >> 12, dtype=np.bool_)
    with mm.subscriptions.invalidate_range(start, end, event=MMU_NOTIFY_MIGRATE, owner=device.owner):
        for i in range(len(moved)):
            va = start + (i << 12)
            vma = mm.vmas.lookup(va)
            if vma is None or not _is_page_of(mm, mm.entry(va, 1), device):
                continue
            if device.coherent:
                moved[i] = _coherent_to_ram(mm, vma, va)
            else:
                moved[i] = device_private_to_ram(mm, vma, va, device)
    return moved


def _is_page_of(mm: AddressSpace, entry: int, device: DeviceMemory) -> bool:
    if not entry & ~NONE:
        return False
    if entry & (P | PROTNONE):
        return device.coherent and mm.memory.device_of(pfn_of(entry)) is device
    types = (mm.kernel.swp_device_write, mm.kernel.swp_device_read)
    return swp_type_of(entry) in types and mm.memory.device_of(swp_pfn(mm, entry)) is device


def _coherent_to_ram(mm: AddressSpace, vma: Vma, va: int) -> bool:
    pfn = mm.memory.alloc_page()
    if pfn is None:
        return False
    _remap(mm, vma, va, mm.entry(va, 1), pfn)
    return True


def _remap(mm: AddressSpace, vma: Vma, va: int, entry: int, pfn: int) -> None:
    """Let a present entry that alone maps its page map ``pfn``, which gets the contents."""
    memory, old = mm.memory, pfn_of(entry)
    exclusive = bool(memory.pages.flags(old) & PG_ANON_EXCLUSIVE)
    memory.pages.set_content(pfn, memory.pages.content(old))
    page_add_anon_rmap(memory, pfn, vma.index(va), exclusive=exclusive)
    mm.page_tables.set_entry(va, 1, mk_pte(pfn, entry & ~PFN))
    page_remove_rmap(memory, old)
    memory.put_page(old)


@write_locked
def migrate_to_device(mm: AddressSpace, start: int, end: int, device: DeviceMemory) -> Moved | int:
    """Move anonymous memory of ``[start, end)`` to a device; return which pages went, bool[npages].

    -EINVAL where an area is missing, unreadable, special, hugetlb or DAX.  Holes and zero pages of private
    areas become fresh pages of the device; pages of files, pinned pages and pages that other processes or
    devices have stay.  Event MIGRATE with the device's owner, over the range.
    """
    if invalid_range(mm, start, end):
        return -EINVAL
    va = start
    while va < end:
        vma = mm.vmas.lookup(va)
        if vma is None or not vma.flags & VM_READ or vma.flags & VM_SPECIAL or vma.is_hugetlb:
            return -EINVAL
        if vma.file is not None and vma.file.kind.dax:
            return -EINVAL
        va = vma.end
    moved = np.zeros((end - start) >> 12, dtype=np.bool_)
    with mm.subscriptions.invalidate_range(start, end, event=MMU_NOTIFY_MIGRATE, owner=device.owner):
        for i in range(len(moved)):
            vma = mm.vmas.lookup(start + (i << 12))
            assert vma is not None
            moved[i] = _to_device(mm, vma, start + (i << 12), device)
    return moved


def _to_device(mm: AddressSpace, vma: Vma, va: int, device: DeviceMemory) -> bool:
    huge = mm.page_tables.row(va, 1) == NO_CHILD and mm.entry(va, 2) & ~NONE
    if huge and not split_huge_pmd(Fault(mm, vma, va, 0)):
        return False
    entry = mm.entry(va, 1)
    if not entry & ~NONE or (entry & P and entry & SPECIAL and pfn_of(entry) == mm.zero_pfn):
        return _insert_device_page(mm, vma, va, device)
    if not entry & (P | PROTNONE):
        return False
    old = vm_normal_page(mm, vma, va, entry)
    if old is None or not _may_move(mm, old):
        return False
    _unshare_compound(mm, old)
    pfn = device.alloc_page()
    if pfn is None:
        return False
    if device.coherent:
        _remap(mm, vma, va, entry, pfn)
        return True
    memory = mm.memory
    memory.pages.set_content(pfn, memory.pages.content(old))
    exclusive = bool(memory.pages.flags(old) & PG_ANON_EXCLUSIVE)
    page_add_anon_rmap(memory, pfn, vma.index(va), exclusive=exclusive)
    mm.page_tables.set_entry(va, 1, _device_entry(mm, pfn, entry))
    page_remove_rmap(memory, old)
    memory.put_page(old)
    return True


def _may_move(mm: AddressSpace, pfn: int) -> bool:
    """True for an anonymous page that one entry maps and nobody else holds (migrate_vma_check_page)."""
    pages = mm.memory.pages
    page = pages.page(pfn)
    if not page.flags & PG_ANON or page.flags & (PG_KSM | PG_DEVICE) or page.mapcount != 1:
        # Pages of a device, coherent ones too, are not of the system (MIGRATE_VMA_SELECT_SYSTEM).
        return False
    if page.order:
        return pages.refcount(pfn) == 1 << page.order
    return page.refcount == 1


def _unshare_compound(mm: AddressSpace, pfn: int) -> None:
    if mm.memory.pages.page(pfn).order:
        mm.memory.split_huge_page(pfn)


def _device_entry(mm: AddressSpace, pfn: int, entry: int) -> int:
    """Return the entry that stands for a device-private page in place of a present one."""
    kernel = mm.kernel
    swp_type = kernel.swp_device_write if entry & RW else kernel.swp_device_read
    return encode_swap(swp_type, pfn) | swp_flags(entry)


def _insert_device_page(mm: AddressSpace, vma: Vma, va: int, device: DeviceMemory) -> bool:
    """Fill a hole or replace the zero page with a page of the device (migrate_vma_insert_page)."""
    if vma.flags & VM_SHARED or not vma.is_anonymous or not alloc_tables(mm, va, 1):
        return False
    pfn = device.alloc_page()
    if pfn is None:
        return False
    page_add_anon_rmap(mm.memory, pfn, vma.index(va), exclusive=mm.kernel.has_anon_exclusive)
    if device.coherent:
        entry = mk_pte(pfn, vma.vm_page_prot)
        entry |= RW | DIRTY if vma.flags & VM_WRITE else 0
    else:
        entry = _device_entry(mm, pfn, RW if vma.flags & VM_WRITE else 0)
    mm.page_tables.set_entry(va, 1, entry)
    return True


@write_locked
def make_device_exclusive_range(mm: AddressSpace, start: int, end: int, owner: int) -> Words:
    """Give the pages of ``[start, end)`` to a device alone; return their PFNs, uint64[npages].

    Pages are first faulted in for writing, as get_user_pages would; NO_PFN where one is no anonymous page
    that only this space maps.  Event EXCLUSIVE with ``owner``, a page each.
    """
    pfns = np.full((end - start) >> 12, NO_PFN, dtype=np.uint64)
    for i in range(len(pfns)):
        va = start + (i << 12)
        vma = mm.vmas.lookup(va)
        if vma is None or not vma.flags & VM_WRITE or vma.is_hugetlb:
            continue
        if handle_mm_fault(mm, vma, va, FAULT_FLAG_WRITE) & VM_FAULT_ERROR:
            continue
        if mm.page_tables.row(va, 1) == NO_CHILD and not split_to_ptes(mm, vma, va):
            continue
        entry = mm.entry(va, 1)
        pfn = vm_normal_page(mm, vma, va, entry) if entry & P else None
        if pfn is None or not mm.memory.pages.flags(pfn) & PG_ANON or mm.memory.pages.mapcount(pfn) != 1:
            continue
        kernel = mm.kernel
        with mm.subscriptions.invalidate_range(va, va + 4096, event=MMU_NOTIFY_EXCLUSIVE, owner=owner):
            swp_type = kernel.swp_device_exclusive_write if entry & RW else kernel.swp_device_exclusive_read
            mm.page_tables.set_entry(va, 1, encode_swap(swp_type, pfn) | swp_flags(entry))
        pfns[i] = pfn
    return pfns
