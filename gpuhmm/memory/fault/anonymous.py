"""First touch of anonymous memory.

Source: mm/memory.c:do_anonymous_page (v6.1).
"""

from __future__ import annotations

from gpuhmm.memory.fault.vm_fault import Fault
from gpuhmm.memory.pages.rmap import page_add_new_anon_rmap
from gpuhmm.mm.entry import DIRTY, SPECIAL, UFFD_WP, mk_pte, wrprotect
from gpuhmm.mm.handler import VM_FAULT_OOM, VM_FAULT_SIGBUS
from gpuhmm.mm.vma import VM_SHARED, VM_UFFD_MISSING


def do_anonymous_page(vmf: Fault, marker: int = 0) -> int:
    """Map the zero page for a read, a fresh page for a write.

    A shared mapping without anything to fill it, and an address whose misses userfaultfd handles, are
    bus errors: nothing may wait here.  A page in place of a uffd-wp ``marker`` is protected against writes.
    """
    if vmf.vma.flags & VM_SHARED:
        return VM_FAULT_SIGBUS
    if not vmf.alloc_tables(1):
        return VM_FAULT_OOM
    if not vmf.write:
        if vmf.vma.flags & VM_UFFD_MISSING:
            return VM_FAULT_SIGBUS
        vmf.store(1, _protected(vmf, mk_pte(vmf.mm.zero_pfn, vmf.prot) | SPECIAL, marker))
        return 0
    pfn = vmf.memory.alloc_page()
    if pfn is None:
        return VM_FAULT_OOM
    if vmf.vma.flags & VM_UFFD_MISSING:
        vmf.memory.put_page(pfn)
        return VM_FAULT_SIGBUS
    page_add_new_anon_rmap(vmf.memory, pfn, vmf.index)
    vmf.store(1, _protected(vmf, vmf.maybe_mkwrite(mk_pte(pfn, vmf.prot) | DIRTY), marker))
    return 0


def _protected(vmf: Fault, pte: int, marker: int) -> int:
    return wrprotect(vmf.mm.kernel, pte | UFFD_WP) if marker else pte
