"""A write to what is mapped read-only: reuse the page, or copy it.

Source: mm/memory.c:do_wp_page, wp_page_copy, wp_page_reuse, wp_page_shared, wp_pfn_shared (v6.1; v5.18
without PageAnonExclusive).
"""

from __future__ import annotations

from gpuhmm.memory.fault.vm_fault import Fault
from gpuhmm.memory.pages.page import PG_ANON, PG_ANON_EXCLUSIVE, PG_KSM, PG_SWAPCACHE
from gpuhmm.memory.pages.rmap import is_dax_page, page_add_new_anon_rmap, page_remove_rmap, vm_normal_page
from gpuhmm.mm.entry import DIRTY, UFFD_WP, A, mk_pte, pfn_of
from gpuhmm.mm.handler import VM_FAULT_NOPAGE, VM_FAULT_OOM, VM_FAULT_SIGBUS
from gpuhmm.mm.vma import VM_SHARED, VM_UFFD_WP


def do_wp_page(vmf: Fault, pte: int) -> int:
    """Serve a write fault at a present entry without RW, or make its page this process's alone (unshare)."""
    vma = vmf.vma
    if not vmf.unshare and vma.flags & VM_UFFD_WP and pte & UFFD_WP:
        return VM_FAULT_SIGBUS  # userfaultfd would have to be asked, and nothing may wait here
    pfn = vm_normal_page(vmf.mm, vma, vmf.va, pte)
    if pfn is None:
        if vma.flags & VM_SHARED:
            return wp_pfn_shared(vmf, pte)
        return wp_page_copy(vmf, pte, None)
    if vma.flags & VM_SHARED:
        return wp_page_shared(vmf, pte)
    if _may_reuse(vmf, pfn):
        return 0 if vmf.unshare else wp_page_reuse(vmf, pte)
    return wp_page_copy(vmf, pte, pfn)


def _may_reuse(vmf: Fault, pfn: int) -> bool:
    """True for an anonymous page that nobody else can see; it is exclusive from then on."""
    memory, pages = vmf.memory, vmf.memory.pages
    flags = pages.flags(pfn)
    if not flags & PG_ANON:
        return False
    if vmf.mm.kernel.has_anon_exclusive and flags & PG_ANON_EXCLUSIVE:
        return True
    if flags & PG_KSM or pages.refcount(pfn) > 3:
        return False
    if pages.refcount(pfn) > 1 + bool(flags & PG_SWAPCACHE):
        return False
    if flags & PG_SWAPCACHE:
        memory.free_swap(pfn)
    if pages.refcount(pfn) != 1:
        return False
    if vmf.mm.kernel.has_anon_exclusive:
        pages.set_flags(pfn, PG_ANON_EXCLUSIVE)
    return True


def wp_page_reuse(vmf: Fault, pte: int) -> int:
    """Make the entry writable where it is."""
    vmf.store(1, vmf.maybe_mkwrite(pte | A | DIRTY))
    return vmf.wrote


def wp_page_copy(vmf: Fault, pte: int, old: int | None) -> int:
    """Map a copy of the page; ``old`` is None for one without a descriptor, such as the zero page."""
    memory, va = vmf.memory, vmf.va
    pfn = memory.alloc_page()
    if pfn is None:
        return VM_FAULT_OOM
    memory.pages.set_content(pfn, memory.pages.content(pfn_of(pte)))
    with vmf.mm.subscriptions.invalidate_range(va, va + 4096):
        page_add_new_anon_rmap(memory, pfn, vmf.index)
        entry = mk_pte(pfn, vmf.prot) | A
        vmf.store(1, entry if vmf.unshare else vmf.maybe_mkwrite(entry | DIRTY))
        if old is not None:
            page_remove_rmap(memory, old)
            memory.free_swap(old)
            memory.put_page(old)
    return 0 if vmf.unshare else vmf.wrote


def wp_page_shared(vmf: Fault, pte: int) -> int:
    """A page of a file in a shared mapping: its file system is told (page_mkwrite), the page stays."""
    return wp_page_reuse(vmf, pte)


def wp_pfn_shared(vmf: Fault, pte: int) -> int:
    """A page without descriptor in a shared mapping; DAX answers that the entry is in place."""
    wp_page_reuse(vmf, pte)
    return VM_FAULT_NOPAGE if is_dax_page(vmf.mm, vmf.vma, vmf.va, pte, pfn_of(pte)) else vmf.wrote
