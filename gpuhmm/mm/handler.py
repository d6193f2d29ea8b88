"""The seam between walk and faults: what a fault handler is asked, and the bits that it answers.

Source: include/linux/mm_types.h:vm_fault_reason, fault_flag (v5.18, v7.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace
    from gpuhmm.mm.vma import Vma

FAULT_FLAG_WRITE = 0x1
FAULT_FLAG_ALLOW_RETRY = 0x4
FAULT_FLAG_KILLABLE = 0x10
FAULT_FLAG_REMOTE = 0x80
FAULT_FLAG_UNSHARE = 0x400

VM_FAULT_OOM = 0x1
VM_FAULT_SIGBUS = 0x2
VM_FAULT_MAJOR = 0x4
VM_FAULT_WRITE = 0x8
VM_FAULT_HWPOISON = 0x10
VM_FAULT_HWPOISON_LARGE = 0x20
VM_FAULT_SIGSEGV = 0x40
VM_FAULT_NOPAGE = 0x100
VM_FAULT_LOCKED = 0x200
VM_FAULT_RETRY = 0x400
VM_FAULT_FALLBACK = 0x800
VM_FAULT_DONE_COW = 0x1000
VM_FAULT_COMPLETED = 0x4000

#: Any of these makes hmm_range_fault() return an error.
VM_FAULT_ERROR = (
    VM_FAULT_OOM
    | VM_FAULT_SIGBUS
    | VM_FAULT_SIGSEGV
    | VM_FAULT_HWPOISON
    | VM_FAULT_HWPOISON_LARGE
    | VM_FAULT_FALLBACK
)


#: The handler gave the mmap lock up (VM_FAULT_COMPLETED: v6.0 and later).
VM_FAULT_DROPPED = VM_FAULT_RETRY | VM_FAULT_COMPLETED


def vm_fault_set_hindex(index: int) -> int:
    """Return the bits that tell the size of a poisoned hugetlb page (VM_FAULT_SET_HINDEX)."""
    return index << 16


@runtime_checkable
class FaultHandler(Protocol):
    """What serves the faults of a walk, called in exactly the kernel's order.

    ``handle_mm_fault`` is called with ``mm.mmap_lock`` held for writing, ``migration_entry_wait`` without
    it, so that another thread can end the migration.
    """

    def handle_mm_fault(self, mm: AddressSpace, vma: Vma, va: int, flags: int) -> int:
        """Serve a fault at ``va`` (bytes, page aligned); return VM_FAULT_* bits, 0 if all went well.

        ``flags`` are FAULT_FLAG_REMOTE and, if write access is needed, FAULT_FLAG_WRITE; from
        :func:`gpuhmm.hmm_range_fault_unlocked_timeout` also FAULT_FLAG_ALLOW_RETRY and FAULT_FLAG_KILLABLE:
        then a handler that let others change the space returns VM_FAULT_RETRY or VM_FAULT_COMPLETED.
        """
        ...

    def migration_entry_wait(self, mm: AddressSpace, va: int, level: int) -> None:
        """Wait until the migration entry over ``va`` is gone; ``level`` 1 for a PTE, 2 for a PMD."""
        ...


@runtime_checkable
class BurstHandler(Protocol):
    """A handler that serves a whole extent at once, with the result of doing so page by page."""

    def handle_mm_fault_range(
        self, mm: AddressSpace, vma: Vma, start: int, end: int, flags: int
    ) -> tuple[int, int]:
        """Fault ``[start, end)`` up to the first error; return the calls made, and the last's bits.

        From v7.3 on VM_FAULT_RETRY and VM_FAULT_COMPLETED end it like an error.
        """
        ...
