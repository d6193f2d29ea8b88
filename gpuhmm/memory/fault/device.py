"""Pages that a device has and the CPU cannot reach: a CPU fault brings them back.

Source: mm/memory.c:do_swap_page; mm/migrate_device.c:migrate_vma_setup, migrate_vma_pages;
mm/migrate.c:remove_migration_pte; lib/test_hmm.c:dmirror_devmem_fault (v6.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuhmm.memory.fault.vm_fault import Fault
from gpuhmm.memory.pages.device import DeviceMemory
from gpuhmm.memory.pages.page import PG_ANON_EXCLUSIVE
from gpuhmm.memory.pages.rmap import page_add_anon_rmap, page_remove_rmap, rmap_walk
from gpuhmm.mm.entry import NONE, PROTNONE, RW, A, P, mk_pte, swp_pfn, swp_software, swp_type_of
from gpuhmm.mm.handler import VM_FAULT_OOM
from gpuhmm.mm.notifier import MMU_NOTIFY_MIGRATE
from gpuhmm.mm.vma import VM_WRITE, Vma

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace


def devmem_fault(vmf: Fault) -> int:
    """Bring the device-private page at a fault back to memory (dev_pagemap_ops.migrate_to_ram)."""
    mm, va, vma = vmf.mm, vmf.va, vmf.vma
    device = mm.memory.device_of(swp_pfn(mm, vmf.entry(1)))
    owner = None if device is None else device.owner
    with mm.subscriptions.invalidate_range(va, va + 4096, event=MMU_NOTIFY_MIGRATE, owner=owner):
        return 0 if device_private_to_ram(mm, vma, va, device) else VM_FAULT_OOM


def device_private_to_ram(mm: AddressSpace, vma: Vma, va: int, device: DeviceMemory | None) -> bool:
    """Replace a device-private entry by one of a fresh page; False if memory ran out.

    The entry comes back old and clean, writable if the device's was.
    """
    memory, entry = mm.memory, mm.entry(va, 1)
    old = swp_pfn(mm, entry)
    writable = swp_type_of(entry) == mm.kernel.swp_device_write
    pfn = memory.alloc_page()
    if pfn is None:
        return False
    if device is not None and device.migrated is not None:
        device.migrated(old)
    if not memory.pages.refcount(old):
        memory.adopt(old, anon=True, exclusive=writable, index=vma.index(va))
    exclusive = writable or bool(memory.pages.flags(old) & PG_ANON_EXCLUSIVE)
    memory.pages.set_content(pfn, memory.pages.content(old))
    others = _other_entries(mm, old, va)
    elsewhere = memory.pages.refcount(old) - 1 - len(others)
    if memory.pages.mapcount(old) > 1 or elsewhere:
        # try_to_migrate visits every area that may map the page, this one too
        with mm.subscriptions.invalidate_range(va, va + 4096):
            pass
    _map_moved(mm, vma, va, entry, pfn, writable, exclusive)
    for other, area, at, pte in others:
        memory.pages.get(pfn)
        with other.subscriptions.invalidate_range(at, at + 4096):
            _map_moved(other, area, at, pte, pfn, False, False)
        page_remove_rmap(memory, old)
        memory.put_page(old)
    if elsewhere:
        memory.pages.get(pfn, elsewhere)
        memory.put_page(old, elsewhere)
    page_remove_rmap(memory, old)
    memory.put_page(old)
    return True


def _map_moved(
    mm: AddressSpace, vma: Vma, va: int, entry: int, pfn: int, writable: bool, exclusive: bool
) -> None:
    """Map ``pfn``, whose reference the caller has, where a device entry stood (remove_migration_pte)."""
    exclusive = exclusive and mm.kernel.has_anon_exclusive
    page_add_anon_rmap(mm.memory, pfn, vma.index(va), exclusive=exclusive)
    new = mk_pte(pfn, vma.vm_page_prot & ~A) | swp_software(entry)
    if writable and vma.flags & VM_WRITE:
        new |= RW
    mm.page_tables.set_entry(va, 1, new)


def _other_entries(mm: AddressSpace, pfn: int, va: int) -> list[tuple[AddressSpace, Vma, int, int]]:
    """Return (space, area, address, entry) of everybody else who has the device page."""
    kernel = mm.kernel
    types = (kernel.swp_device_write, kernel.swp_device_read)
    found = []
    for other, area, at in rmap_walk(mm.memory, pfn):
        entry = other.entry(at, 1)
        if (other is mm and at == va) or entry & (P | PROTNONE) or not entry & ~NONE:
            continue
        if swp_type_of(entry) in types and swp_pfn(mm, entry) == pfn:
            found.append((other, area, at, entry))
    return found
