"""Entries that are not present: swapped out, migrating, on a device, poisoned, or a marker.

Source: mm/memory.c:do_swap_page, handle_pte_marker, remove_device_exclusive_entry,
restore_exclusive_pte (v6.1; v5.18 without the exclusive bit).
"""

from __future__ import annotations

from gpuhmm.memory.fault.anonymous import do_anonymous_page
from gpuhmm.memory.fault.cow import do_wp_page
from gpuhmm.memory.fault.device import devmem_fault
from gpuhmm.memory.fault.file import do_fault
from gpuhmm.memory.fault.migration import is_migration_type
from gpuhmm.memory.fault.vm_fault import Fault
from gpuhmm.memory.fault.write_upgrade import can_change_pte_writable
from gpuhmm.memory.pages.page import PG_HWPOISON, PG_KSM
from gpuhmm.memory.pages.rmap import page_add_anon_rmap
from gpuhmm.memory.pages.swapfile import slot_of
from gpuhmm.mm.entry import (
    DIRTY,
    PTE_MARKER_GUARD,
    PTE_MARKER_POISONED,
    PTE_MARKER_UFFD_WP,
    SWP_EXCLUSIVE,
    UFFD_WP,
    A,
    mk_pte,
    mkwrite,
    swp_offset,
    swp_pfn,
    swp_software,
    swp_type_of,
    wrprotect,
)
from gpuhmm.mm.handler import (
    VM_FAULT_ERROR,
    VM_FAULT_HWPOISON,
    VM_FAULT_MAJOR,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
)
from gpuhmm.mm.notifier import MMU_NOTIFY_CLEAR, MMU_NOTIFY_EXCLUSIVE
from gpuhmm.mm.vma import VM_UFFD_WP, VM_WRITE


def do_swap_page(vmf: Fault, pte: int) -> int:
    """Serve a fault at an entry that is not present."""
    kernel, swp_type = vmf.mm.kernel, swp_type_of(pte)
    if swp_type < kernel.max_swapfiles:
        return swap_in(vmf, pte)
    if is_migration_type(vmf.mm, swp_type):
        vmf.mm.faults.migration_entry_wait(vmf.mm, vmf.va, 1)
        return 0
    if swp_type in (kernel.swp_device_exclusive_write, kernel.swp_device_exclusive_read):
        return remove_device_exclusive_entry(vmf, pte)
    if swp_type in (kernel.swp_device_write, kernel.swp_device_read):
        return devmem_fault(vmf)
    if swp_type == kernel.swp_hwpoison:
        return VM_FAULT_HWPOISON
    if swp_type == kernel.swp_pte_marker:
        return handle_pte_marker(vmf, pte)
    return VM_FAULT_SIGBUS


def handle_pte_marker(vmf: Fault, pte: int) -> int:
    """A marker keeps a write protection, or makes its page unusable: poison before guard before uffd-wp.

    Bits that the kernel does not have (``pte_marker_mask``) are not looked at.
    """
    kernel, vma = vmf.mm.kernel, vmf.vma
    marker = swp_offset(pte) & kernel.pte_marker_mask
    if marker & PTE_MARKER_POISONED:
        return VM_FAULT_HWPOISON
    if marker & PTE_MARKER_GUARD:
        return VM_FAULT_SIGSEGV
    if not marker & PTE_MARKER_UFFD_WP:
        return VM_FAULT_SIGBUS
    if not vma.flags & VM_UFFD_WP or (vma.is_anonymous and not kernel.anon_uffd_wp_markers):
        vmf.store(1, 0)  # left over: pte_marker_clear
        return 0
    return do_anonymous_page(vmf, pte) if vma.is_anonymous else do_fault(vmf, pte)


def swap_in(vmf: Fault, pte: int) -> int:
    """Map a page that was swapped out, and grant the write at once where the page is exclusive."""
    memory, swap = vmf.memory, vmf.memory.swap
    slot = slot_of(swp_type_of(pte), swp_offset(pte))
    has_exclusive = vmf.mm.kernel.has_anon_exclusive
    exclusive = bool(pte & SWP_EXCLUSIVE) and has_exclusive
    swap.adopt(slot, 1 if exclusive or not has_exclusive else 2)
    ret = 0
    pfn = swap.cached(slot)
    if pfn is None:
        pfn = memory.alloc_page()
        if pfn is None:
            return VM_FAULT_OOM
        memory.pages.set_content(pfn, swap.content(slot))
        ret = VM_FAULT_MAJOR
        if not (swap.synchronous and swap.count(slot) == 1):
            memory.add_to_swap_cache(slot, pfn)
    else:
        memory.pages.get(pfn)
        if memory.pages.flags(pfn) & PG_HWPOISON:
            memory.put_page(pfn)
            return VM_FAULT_HWPOISON
    swap.free(slot)
    _try_to_free_swap(vmf, pfn)
    entry = mk_pte(pfn, vmf.prot)
    ksm = bool(memory.pages.flags(pfn) & PG_KSM)
    alone = not ksm and (exclusive or memory.pages.refcount(pfn) == 1)
    kernel = vmf.mm.kernel
    if kernel.swap_in_writable:
        entry |= swp_software(pte)
        protected = entry & UFFD_WP and vmf.vma.flags & VM_UFFD_WP
        if alone and vmf.vma.flags & VM_WRITE and not protected:
            entry = mkwrite(kernel, entry | (DIRTY if vmf.write else 0))
            vmf.write = False
    else:
        if alone and vmf.write:
            entry = vmf.maybe_mkwrite(entry | DIRTY)
            vmf.write = False
            ret |= vmf.wrote
        entry |= swp_software(pte)
        if entry & UFFD_WP:
            entry = wrprotect(kernel, entry)
    page_add_anon_rmap(memory, pfn, vmf.index, exclusive=alone and has_exclusive)
    vmf.store(1, entry)
    if vmf.write:
        ret |= do_wp_page(vmf, entry)
        if ret & VM_FAULT_ERROR:
            ret &= VM_FAULT_ERROR
    return ret


def _try_to_free_swap(vmf: Fault, pfn: int) -> None:
    """A page that nobody else needs leaves the swap cache (should_try_to_free_swap, swap not being full)."""
    if vmf.write and vmf.memory.pages.refcount(pfn) == 2:
        vmf.memory.free_swap(pfn)


def remove_device_exclusive_entry(vmf: Fault, pte: int) -> int:
    """Take a page back from a device that had it for itself."""
    mm, va, kernel = vmf.mm, vmf.va, vmf.mm.kernel
    event = MMU_NOTIFY_CLEAR if kernel.restoring_exclusive_clears else MMU_NOTIFY_EXCLUSIVE
    with mm.subscriptions.invalidate_range(va, va + 4096, event=event):
        entry = mk_pte(swp_pfn(mm, pte), vmf.prot & ~A) | swp_software(pte)
        if kernel.swp_device_exclusive_write == kernel.swp_device_exclusive_read:
            # One type, which does not tell who may write: the page does (restore_exclusive_pte, v6.15).
            if can_change_pte_writable(mm, vmf.vma, va, entry):
                entry = mkwrite(kernel, entry | DIRTY)
        elif swp_type_of(pte) == kernel.swp_device_exclusive_write:
            entry = vmf.maybe_mkwrite(entry | DIRTY)
        vmf.store(1, entry)
    return 0
