"""Faults in files whose pages are memory themselves (DAX).

Source: fs/dax.c:dax_iomap_pte_fault, dax_iomap_pmd_fault; mm/memory.c:insert_pfn;
mm/huge_memory.c:insert_pfn_pmd (v6.1).
"""

from __future__ import annotations

from gpuhmm.memory.fault.vm_fault import Fault
from gpuhmm.memory.pages.rmap import page_add_new_anon_rmap
from gpuhmm.mm.entry import DIRTY, PMD_SIZE, PSE, SPECIAL, A, mk_pte
from gpuhmm.mm.handler import VM_FAULT_DONE_COW, VM_FAULT_FALLBACK, VM_FAULT_NOPAGE, VM_FAULT_OOM
from gpuhmm.mm.vma import VM_SHARED
from gpuhmm.mm.x86 import NO_PFN


def dax_iomap_pte_fault(vmf: Fault, cow: int | None) -> tuple[int, int]:
    """Map one page of the file, the zero page over a hole, or a copy of either; bits and 0."""
    file = vmf.vma.file
    assert file is not None
    pfn = file.lookup(vmf.index)
    if not vmf.alloc_tables(1):
        return VM_FAULT_OOM, 0
    if cow is not None:
        vmf.memory.pages.set_content(cow, 0 if pfn is None else vmf.memory.pages.content(pfn))
        page_add_new_anon_rmap(vmf.memory, cow, vmf.index)
        vmf.store(1, vmf.maybe_mkwrite(mk_pte(cow, vmf.prot) | A | DIRTY))
        return VM_FAULT_DONE_COW, 0
    if pfn is None and not vmf.write:
        vmf.store(1, mk_pte(vmf.mm.zero_pfn, vmf.prot) | SPECIAL)
        return VM_FAULT_NOPAGE, 0
    if pfn is None:
        pfn = file.fill_hole(vmf.index)
    devmap = vmf.mm.kernel.page_devmap  # without it pages of DAX are mapped as any other
    entry = mk_pte(pfn, vmf.prot) | (SPECIAL | devmap if devmap else 0)
    if vmf.write:
        entry = vmf.maybe_mkwrite(entry | A | DIRTY)
    vmf.store(1, entry)
    return VM_FAULT_NOPAGE, 0


def dax_iomap_pmd_fault(vmf: Fault) -> int:
    """Map 2 MiB of the file at once; VM_FAULT_FALLBACK where file, area or access do not allow it."""
    vma, file = vmf.vma, vmf.vma.file
    assert file is not None
    first = vmf.va & -PMD_SIZE
    if (vmf.va >> 12) % 512 != vmf.index % 512:
        return VM_FAULT_FALLBACK
    if vmf.write and not vma.flags & VM_SHARED:
        return VM_FAULT_FALLBACK
    if first < vma.start or first + PMD_SIZE > vma.end:
        return VM_FAULT_FALLBACK
    index = vmf.index & -512
    if index + 512 > file.npages or not file.huge:
        return VM_FAULT_FALLBACK
    pfn = file.lookup(index)
    if pfn is None:
        return _dax_pmd_load_hole(vmf, index)
    if pfn % 512:
        return VM_FAULT_FALLBACK
    entry = mk_pte(pfn, vmf.prot) | PSE | vmf.mm.kernel.page_devmap
    if vmf.write:
        entry |= A | DIRTY
        entry = vmf.maybe_mkwrite(entry)
    if not vmf.alloc_tables(2):
        return VM_FAULT_OOM
    vmf.store(2, entry)
    return VM_FAULT_NOPAGE


def _dax_pmd_load_hole(vmf: Fault, index: int) -> int:
    """Map the huge zero page over a hole that is read."""
    file = vmf.vma.file
    assert file is not None
    if vmf.write or any(file.lookup(index + i) is not None for i in range(512)):
        return VM_FAULT_FALLBACK
    zero = vmf.mm.get_huge_zero_page()
    if zero == NO_PFN:
        return VM_FAULT_FALLBACK
    vmf.store(2, mk_pte(zero, vmf.prot) | PSE)
    return VM_FAULT_NOPAGE
