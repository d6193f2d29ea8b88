"""One fault (``struct vm_fault``), and the tables that it needs.

Source: include/linux/mm.h; mm/memory.c:__pmd_alloc, __pte_alloc (v6.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuhmm.mm.entry import TABLE, mkwrite, save_dirty
from gpuhmm.mm.handler import FAULT_FLAG_UNSHARE, FAULT_FLAG_WRITE, VM_FAULT_WRITE
from gpuhmm.mm.tables import NO_CHILD
from gpuhmm.mm.vma import VM_WRITE, Vma

if TYPE_CHECKING:
    from gpuhmm.memory.pages.physical import PhysicalMemory
    from gpuhmm.memory.space import AddressSpace


class Fault:
    """A fault at ``va`` (bytes) of ``vma``; ``write`` is cleared once the write has been granted."""

    __slots__ = ("flags", "memory", "mm", "prot", "tables", "unshare", "va", "vma", "write")

    def __init__(self, mm: AddressSpace, vma: Vma, va: int, flags: int) -> None:
        self.mm = mm
        self.memory: PhysicalMemory = mm.memory
        self.tables = mm.page_tables
        self.vma = vma
        self.va = va
        self.flags = flags
        self.write = bool(flags & FAULT_FLAG_WRITE)
        self.unshare = bool(flags & FAULT_FLAG_UNSHARE)
        self.prot = vma.vm_page_prot

    @property
    def index(self) -> int:
        """The page of the file, or of anonymous memory, at the address (pgoff)."""
        return self.vma.index(self.va)

    def entry(self, level: int) -> int:
        """Return the raw entry of ``level`` over the address; 0 without a table."""
        return self.tables.entry(self.va, level)

    def store(self, level: int, entry: int) -> None:
        """Store the entry of ``level`` over the address."""
        self.tables.set_entry(self.va, level, entry)

    def alloc_tables(self, level: int) -> bool:
        """Make the tables above the entry of ``level``; False if memory ran out (pmd_alloc and kin)."""
        return alloc_tables(self.mm, self.va, level)

    def maybe_mkwrite(self, entry: int) -> int:
        """Make an entry writable where its area is (maybe_mkwrite)."""
        kernel = self.mm.kernel
        return mkwrite(kernel, entry) if self.vma.flags & VM_WRITE else save_dirty(kernel, entry)

    @property
    def wrote(self) -> int:
        """What a copy or a reuse returns: VM_FAULT_WRITE on kernels that have it."""
        return VM_FAULT_WRITE if self.mm.kernel.vm_fault_write else 0


def alloc_tables(mm: AddressSpace, va: int, level: int) -> bool:
    """Make the tables above the entry of ``level`` over ``va``; False if memory ran out."""
    tables = mm.page_tables
    for upper in range(mm.levels, level, -1):
        if tables.row(va, upper - 1) != NO_CHILD:
            continue
        pfn = mm.memory.alloc_table()
        if pfn is None:
            return False
        tables.set_entry(va, upper, pfn << 12 | TABLE)
    return True
