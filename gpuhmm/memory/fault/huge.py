"""Huge pages of 2 MiB: first touch, copy-on-write by splitting, NUMA hints, migration.

Source: mm/huge_memory.c, mm/memory.c:create_huge_pmd, wp_huge_pmd (v6.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.memory.fault.dax import dax_iomap_pmd_fault
from gpuhmm.memory.fault.file import transhuge_vma_suitable
from gpuhmm.memory.fault.migration import is_migration_type, remove_migration_pte
from gpuhmm.memory.fault.vm_fault import Fault
from gpuhmm.memory.fault.write_upgrade import can_change_pmd_writable
from gpuhmm.memory.pages.page import PG_ANON, PG_ANON_EXCLUSIVE
from gpuhmm.memory.pages.rmap import huge_normal_page, page_add_new_anon_rmap, page_remove_rmap
from gpuhmm.mm.entry import (
    DIRTY,
    PMD_SIZE,
    PSE,
    RW,
    SOFT_DIRTY,
    SPECIAL,
    TABLE,
    UFFD_WP,
    A,
    D,
    mk_pte,
    mkwrite,
    pmd_modify,
    save_dirty,
    swp_pfn,
    swp_software,
    swp_type_of,
)
from gpuhmm.mm.handler import VM_FAULT_FALLBACK, VM_FAULT_OOM, VM_FAULT_SIGBUS
from gpuhmm.mm.notifier import MMU_NOTIFY_MIGRATE
from gpuhmm.mm.vma import (
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_NOHUGEPAGE,
    VM_SHARED,
    VM_SPECIAL,
    VM_UFFD_MISSING,
    VM_UFFD_WP,
    VM_WRITE,
    Vma,
)
from gpuhmm.mm.x86 import NO_PFN

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

_U64 = np.uint64


def hugepage_vma_check(vmf: Fault) -> bool:
    """True if a fault in this area may be served with a huge entry at once."""
    vma = vmf.vma
    if vma.flags & VM_NOHUGEPAGE:
        return False
    if vma.file is not None and vma.file.kind.dax:
        return True
    if vma.flags & (VM_SPECIAL | VM_HUGETLB) or not vma.is_anonymous:
        return False
    thp = vmf.memory.thp
    return thp == "always" or (thp == "madvise" and bool(vma.flags & VM_HUGEPAGE))


def create_huge_pmd(vmf: Fault) -> int:
    """Serve a fault at an empty PMD; VM_FAULT_FALLBACK where a small page has to do."""
    if vmf.vma.is_anonymous:
        return do_huge_pmd_anonymous_page(vmf)
    return dax_iomap_pmd_fault(vmf)


def do_huge_pmd_anonymous_page(vmf: Fault) -> int:
    """Map the huge zero page for a read, a fresh huge page for a write."""
    vma = vmf.vma
    if not transhuge_vma_suitable(vmf) or vma.flags & VM_SHARED:
        return VM_FAULT_FALLBACK
    if not vmf.write and vmf.memory.use_zero_page:
        pfn = vmf.mm.get_huge_zero_page()
        if pfn == NO_PFN:
            return VM_FAULT_FALLBACK
        if vma.flags & VM_UFFD_MISSING:
            return VM_FAULT_SIGBUS
        vmf.store(2, huge_zero_pmd(vmf.mm, vmf.vma))
        return 0
    page = vmf.memory.alloc_page(9)
    if page is None:
        return VM_FAULT_FALLBACK
    if vma.flags & VM_UFFD_MISSING:
        vmf.memory.put_page(page)
        return VM_FAULT_SIGBUS
    page_add_new_anon_rmap(vmf.memory, page, vma.index(vmf.va & -PMD_SIZE), 9)
    vmf.store(2, vmf.maybe_mkwrite(mk_pte(page, vmf.prot) | PSE | DIRTY))
    return 0


def huge_zero_pmd(mm: AddressSpace, vma: Vma) -> int:
    """Return the entry of the huge zero page in an area (set_huge_zero_folio)."""
    special = SPECIAL if mm.kernel.huge_zero_page_special else 0
    return mk_pte(mm.huge_zero_pfn, vma.vm_page_prot) | PSE | special


def wp_huge_pmd(vmf: Fault, pmd: int) -> int:
    """Serve a write to a read-only huge entry; VM_FAULT_FALLBACK once it is split."""
    vma = vmf.vma
    if vma.is_anonymous:
        if not vmf.unshare and vma.flags & VM_UFFD_WP and pmd & UFFD_WP:
            return VM_FAULT_SIGBUS
        return do_huge_pmd_wp_page(vmf, pmd)
    if vma.file is not None and vma.file.kind.dax:
        ret = dax_iomap_pmd_fault(vmf)
        if not ret & VM_FAULT_FALLBACK:
            return ret
        split_huge_pmd(vmf)  # dax_iomap_pmd_fault splits, and its caller does so again
    if not split_huge_pmd(vmf):
        return VM_FAULT_OOM
    return VM_FAULT_FALLBACK


def do_huge_pmd_wp_page(vmf: Fault, pmd: int) -> int:
    """Reuse a huge page that nobody else sees; split any other, so that a small page is copied."""
    pfn = huge_normal_page(vmf.mm, vmf.vma, vmf.va, pmd)
    if pfn is None and vmf.mm.kernel.huge_zero_page_replaced and _replace_huge_zero_page(vmf):
        return 0
    if pfn is not None and _may_reuse(vmf, pfn):
        if vmf.unshare:
            return 0
        vmf.store(2, vmf.maybe_mkwrite(pmd | A | DIRTY))
        return vmf.wrote
    if not split_huge_pmd(vmf):
        return VM_FAULT_OOM
    return VM_FAULT_FALLBACK


def _replace_huge_zero_page(vmf: Fault) -> bool:
    """Map a fresh huge page in place of the huge zero page (do_huge_zero_wp_pmd); False without memory."""
    page = vmf.memory.alloc_page(9)
    if page is None:
        return False
    first = vmf.va & -PMD_SIZE
    with vmf.mm.subscriptions.invalidate_range(first, first + PMD_SIZE):
        page_add_new_anon_rmap(vmf.memory, page, vmf.vma.index(first), 9)
        vmf.store(2, vmf.maybe_mkwrite(mk_pte(page, vmf.prot) | PSE | DIRTY))
    return True


def _may_reuse(vmf: Fault, pfn: int) -> bool:
    pages = vmf.memory.pages
    has_exclusive = vmf.mm.kernel.has_anon_exclusive
    if has_exclusive and pages.flags(pfn) & PG_ANON_EXCLUSIVE:
        return True
    if not pages.flags(pfn) & PG_ANON or pages.refcount(pfn) != 1:
        return False
    if has_exclusive:
        pages.set_flags(pfn, PG_ANON_EXCLUSIVE)
    return True


def split_huge_pmd(vmf: Fault) -> bool:
    """Replace a huge entry by a table, or by nothing in a mapping of a file; False without memory.

    The caller's notifiers are told whether or not there is a huge entry left (__split_huge_pmd).
    """
    first = vmf.va & -PMD_SIZE
    table = vmf.memory.alloc_table()
    if table is None:
        return False
    with vmf.mm.subscriptions.invalidate_range(first, first + PMD_SIZE):
        pmd = vmf.entry(2)
        if not pmd & vmf.mm.kernel.huge_bits:
            vmf.memory.put_page(table)
        elif not vmf.vma.is_anonymous:
            vmf.memory.put_page(table)
            _zap_file_pmd(vmf, pmd)
        else:
            _split_anonymous(vmf, pmd, table)
    return True


def _zap_file_pmd(vmf: Fault, pmd: int) -> None:
    vmf.store(2, 0)
    pfn = huge_normal_page(vmf.mm, vmf.vma, vmf.va, pmd)
    if pfn is not None:
        page_remove_rmap(vmf.memory, pfn, 9)
        vmf.memory.put_page(pfn)


def _split_anonymous(vmf: Fault, pmd: int, table: int) -> None:
    pages = vmf.memory.pages
    pfn = huge_normal_page(vmf.mm, vmf.vma, vmf.va, pmd)
    vmf.store(2, table << 12 | TABLE)
    row = vmf.tables.row(vmf.va, 1)
    if pfn is None:
        zero = mk_pte(vmf.mm.zero_pfn, vmf.prot) | SPECIAL
        vmf.tables.store(1, row, 0, np.full(512, zero, dtype=_U64))
        return
    # Dirty goes to the page, and on newer kernels to the entries too; the rights are those of the area again.
    kernel = vmf.mm.kernel
    flags = vmf.maybe_mkwrite(vmf.prot) if pmd & RW else vmf.prot & ~RW
    flags = (flags & ~(A | D)) | (pmd & (A | SOFT_DIRTY | UFFD_WP))
    if kernel.split_keeps_dirty and pmd & kernel.dirty_bits:
        flags = save_dirty(kernel, flags | DIRTY)
    entries = np.array([mk_pte(pfn + i, flags) for i in range(512)], dtype=_U64)
    pages.get(pfn, 511)
    if pages.flags(pfn) & PG_ANON_EXCLUSIVE:
        for section, where in pages.runs(pfn, 512):
            section.flags[where] |= PG_ANON_EXCLUSIVE
    vmf.tables.store(1, row, 0, entries)


def touch_pmd(vmf: Fault, pmd: int) -> int:
    """The permission is enough: a write sets A and D, a read nothing (huge_pmd_set_accessed)."""
    if vmf.write and pmd | A | DIRTY != pmd:
        vmf.store(2, pmd | A | DIRTY)
    return 0


def huge_pud_set_accessed(vmf: Fault, pud: int) -> int:
    """A PUD that maps 1 GiB: made writable if need be, young and dirty by a write."""
    if vmf.write and pud | RW | A | DIRTY != pud:
        vmf.store(3, mkwrite(vmf.mm.kernel, pud | A | DIRTY))
    return 0


def do_huge_pmd_numa_page(vmf: Fault, pmd: int) -> int:
    """Restore the protection that a NUMA hint took away; on one node nothing migrates."""
    kernel = vmf.mm.kernel
    entry = pmd_modify(kernel, pmd, vmf.prot)
    if kernel.manual_write_upgrade:
        writable = can_change_pmd_writable(vmf.mm, vmf.vma, vmf.va, entry)
    else:
        writable = bool(pmd & RW)
    vmf.store(2, mkwrite(kernel, entry | A) if writable else entry | A)
    return 0


def do_huge_pmd_device_private(vmf: Fault, pmd: int) -> int:
    """Bring the 2 MiB that a device has back as one huge page: old and clean, writable if the device's was.

    Event MIGRATE with the device's owner over the 2 MiB.  Source: mm/huge_memory.c (v7.0).
    """
    mm, vma, memory = vmf.mm, vmf.vma, vmf.memory
    first, old = vmf.va & -PMD_SIZE, swp_pfn(mm, pmd)
    device = memory.device_of(old)
    owner = None if device is None else device.owner
    with mm.subscriptions.invalidate_range(first, first + PMD_SIZE, event=MMU_NOTIFY_MIGRATE, owner=owner):
        page = memory.alloc_page(9)
        if page is None:
            return VM_FAULT_OOM
        page_add_new_anon_rmap(memory, page, vma.index(first), 9)
        entry = mk_pte(page, vmf.prot & ~A) | PSE | swp_software(pmd)
        if swp_type_of(pmd) == mm.kernel.swp_device_write and vma.flags & VM_WRITE:
            entry = mkwrite(mm.kernel, entry)
        vmf.store(2, entry)
    return 0


def pmd_migration_entry_wait(vmf: Fault, pmd: int) -> int:
    """Wait until the huge page has moved, or bring it back from its device; all else is a bus error."""
    kernel = vmf.mm.kernel
    private = swp_type_of(pmd) in (kernel.swp_device_write, kernel.swp_device_read)
    if private and kernel.device_private_pmd_faults:
        return do_huge_pmd_device_private(vmf, pmd)
    if not is_migration_type(vmf.mm, swp_type_of(pmd)):
        return VM_FAULT_SIGBUS
    remove_migration_pte(vmf.mm, vmf.vma, vmf.va & -PMD_SIZE, 2)
    return 0
