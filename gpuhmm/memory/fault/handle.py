"""The way of a fault through the levels of a page table.

Source: mm/memory.c:handle_mm_fault, __handle_mm_fault, handle_pte_fault, do_numa_page (v6.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuhmm.memory.fault import huge
from gpuhmm.memory.fault.anonymous import do_anonymous_page
from gpuhmm.memory.fault.cow import do_wp_page
from gpuhmm.memory.fault.file import do_fault
from gpuhmm.memory.fault.hugetlb import hugetlb_fault
from gpuhmm.memory.fault.swap import do_swap_page
from gpuhmm.memory.fault.vm_fault import Fault
from gpuhmm.memory.fault.write_upgrade import can_change_pte_writable
from gpuhmm.mm.entry import DIRTY, NONE, PROTNONE, PSE, RW, A, P, mkwrite, pte_modify
from gpuhmm.mm.handler import (
    FAULT_FLAG_WRITE,
    VM_FAULT_FALLBACK,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
)
from gpuhmm.mm.tables import NO_CHILD
from gpuhmm.mm.vma import VM_ACCESS_FLAGS, VM_SHARED, VM_WRITE, Vma

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace


def handle_mm_fault(mm: AddressSpace, vma: Vma, va: int, flags: int) -> int:
    """Serve a fault at ``va`` of ``vma``; return VM_FAULT_* bits."""
    if flags & FAULT_FLAG_WRITE and not vma.flags & VM_WRITE:
        return VM_FAULT_SIGSEGV
    if vma.flags & VM_SHARED and vma.file is None:
        vma = mm.give_file(vma)
    vmf = Fault(mm, vma, va, flags)
    if vma.is_hugetlb:
        return hugetlb_fault(vmf)
    row = vmf.tables.row(va, 1)
    if row == NO_CHILD:
        ret = _fault_above_ptes(vmf)
        if not ret & VM_FAULT_FALLBACK:
            return ret
        row = vmf.tables.row(va, 1)
        if row == NO_CHILD:
            # finish_fault makes the table; without one there is no entry yet
            return _no_pte(vmf)
    return handle_pte_fault(vmf, int(vmf.tables.leaf[row, va >> 12 & 511]))


def _fault_above_ptes(vmf: Fault) -> int:
    """Serve what is served by a PUD or a PMD; VM_FAULT_FALLBACK where a PTE has to."""
    if not vmf.alloc_tables(3):
        return VM_FAULT_OOM
    pud = vmf.entry(3)
    if pud & P and pud & vmf.mm.kernel.huge_bits:
        return huge.huge_pud_set_accessed(vmf, pud)
    if not vmf.alloc_tables(2):
        return VM_FAULT_OOM
    pmd = vmf.entry(2)
    if not pmd & ~NONE:
        return huge.create_huge_pmd(vmf) if huge.hugepage_vma_check(vmf) else VM_FAULT_FALLBACK
    if not pmd & (P | PROTNONE | PSE):
        return huge.pmd_migration_entry_wait(vmf, pmd)
    if not pmd & vmf.mm.kernel.huge_bits:
        return VM_FAULT_SIGBUS  # pmd_bad
    if pmd & (P | PROTNONE) == PROTNONE and vmf.vma.flags & VM_ACCESS_FLAGS:
        return huge.do_huge_pmd_numa_page(vmf, pmd)
    if (vmf.write or vmf.unshare) and not pmd & RW:
        return huge.wp_huge_pmd(vmf, pmd)
    return huge.touch_pmd(vmf, pmd)


def _no_pte(vmf: Fault) -> int:
    if vmf.vma.is_anonymous:
        return do_anonymous_page(vmf)
    return do_fault(vmf, 0)


def handle_pte_fault(vmf: Fault, pte: int) -> int:
    """Serve a fault at an entry of a leaf table."""
    if not pte & ~NONE:
        return _no_pte(vmf)
    if not pte & (P | PROTNONE):
        return do_swap_page(vmf, pte)
    if not pte & P and vmf.vma.flags & VM_ACCESS_FLAGS:
        return do_numa_page(vmf, pte)
    if vmf.unshare and not pte & RW:
        return do_wp_page(vmf, pte)
    if not vmf.write:
        return 0  # ptep_set_access_flags stores nothing for a read: A is the hardware's to set
    if not pte & RW:
        return do_wp_page(vmf, pte)
    touched = pte | DIRTY | A
    if touched != pte:
        vmf.store(1, touched)
    return 0


def do_numa_page(vmf: Fault, pte: int) -> int:
    """Restore the protection that a NUMA hint took away; on one node nothing migrates."""
    kernel = vmf.mm.kernel
    entry = pte_modify(kernel, pte, vmf.prot)
    if kernel.manual_write_upgrade:
        writable = can_change_pte_writable(vmf.mm, vmf.vma, vmf.va, entry)
    else:
        writable = bool(pte & RW)
    vmf.store(1, mkwrite(kernel, entry | A) if writable else entry | A)
    return 0
