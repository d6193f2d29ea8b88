"""One fault (``struct vm_fault``), and how an entry is made of a page and a protection.

Source: include/linux/mm.h, include/linux/pgtable.h, arch/x86/include/asm/pgtable.h (v6.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuhmm.memory.pages.page import PG_TABLE
from gpuhmm.mm import x86
from gpuhmm.mm.handler import FAULT_FLAG_UNSHARE, FAULT_FLAG_WRITE
from gpuhmm.mm.tables import NO_CHILD
from gpuhmm.mm.vma import VM_WRITE, Vma
from gpuhmm.mm.x86 import level_shift

if TYPE_CHECKING:
    from gpuhmm.memory.pages.physical import PhysicalMemory
    from gpuhmm.memory.space import AddressSpace

P = int(x86.PAGE_PRESENT)
RW = int(x86.PAGE_RW)
A = int(x86.PAGE_ACCESSED)
D = int(x86.PAGE_DIRTY)
PSE = int(x86.PAGE_PSE)
PROTNONE = int(x86.PAGE_PROTNONE)
SPECIAL = int(x86.PAGE_SPECIAL)
UFFD_WP = int(x86.PAGE_UFFD_WP)
SOFT_DIRTY = int(x86.PAGE_SOFT_DIRTY)
DEVMAP = int(x86.PAGE_DEVMAP)
PFN = int(x86.PTE_PFN_MASK)
HUGE_PFN = int(x86.PMD_PFN_MASK)
NONE = int(x86.KNL_ERRATUM_MASK)
TABLE = int(x86.PAGE_TABLE)
#: pte_mkdirty sets the hardware's and the software's dirty bit.
DIRTY = D | SOFT_DIRTY

#: Software bits of a swap entry, and the exclusive marker of v5.19 and later.
SWP_SOFT_DIRTY = 1 << 1
SWP_UFFD_WP = 1 << 2
SWP_EXCLUSIVE = 1 << 3

#: What a change of protection leaves (_PAGE_CHG_MASK): PFN, cache bits, A, D, and software bits.
CHANGE_MASK = PFN | A | D | SPECIAL | UFFD_WP | SOFT_DIRTY | DEVMAP | int(x86.PAGE_PWT | x86.PAGE_PCD)

PMD_SIZE = 1 << 21


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
        row = self.tables.row(self.va, level)
        if row == NO_CHILD:
            return 0
        pool = self.tables.leaf if level == 1 else self.tables.upper
        return int(pool[row, self.va >> level_shift(level) & 511])

    def store(self, level: int, entry: int) -> None:
        """Store the entry of ``level`` over the address."""
        self.tables.set_entry(self.va, level, entry)

    def alloc_tables(self, level: int) -> bool:
        """Make the tables above the entry of ``level``; False if memory ran out (pmd_alloc and kin)."""
        return alloc_tables(self.mm, self.va, level)

    def maybe_mkwrite(self, entry: int) -> int:
        """Make an entry writable where its area is (maybe_mkwrite)."""
        return entry | RW if self.vma.flags & VM_WRITE else entry


def alloc_tables(mm: AddressSpace, va: int, level: int) -> bool:
    """Make the tables above the entry of ``level`` over ``va``; False if memory ran out."""
    tables = mm.page_tables
    for upper in range(mm.levels, level, -1):
        if tables.row(va, upper - 1) != NO_CHILD:
            continue
        pfn = mm.memory.alloc_page(0, PG_TABLE)
        if pfn is None:
            return False
        tables.set_entry(va, upper, pfn << 12 | TABLE)
    return True


def mk_pte(pfn: int, prot: int) -> int:
    """Return the entry of a page under a protection; the PFN is inverted where P is not set."""
    field = pfn << 12
    return (field if prot & P else ~field & PFN) | prot


def pfn_of(entry: int) -> int:
    """Return the PFN of a present or PROTNONE entry of 4 KiB."""
    return ((entry if entry & P else ~entry) & PFN) >> 12


def huge_pfn_of(entry: int) -> int:
    """Return the PFN of a huge entry of 2 MiB."""
    return ((entry if entry & P else ~entry) & HUGE_PFN) >> 12


def pte_modify(entry: int, prot: int, keep: int = 0) -> int:
    """Return an entry under another protection (pte_modify); ``keep`` are more bits that stay.

    PTEs and hugetlb entries, which are modified as PTEs are.
    """
    return _modify(entry, prot, keep, PFN)


def pmd_modify(entry: int, prot: int) -> int:
    """Return a huge PMD under another protection."""
    return _modify(entry, prot, PSE, HUGE_PFN)


def _modify(entry: int, prot: int, keep: int, field: int) -> int:
    upright = entry if entry & P else entry ^ field
    changed = (upright & (CHANGE_MASK | keep)) | (prot & ~CHANGE_MASK)
    return changed if changed & P else changed ^ field


def is_none(entry: int) -> bool:
    """pte_none, pmd_none and kin."""
    return not entry & ~NONE


def swp_offset(entry: int) -> int:
    """Return all 50 bits of a swap entry's offset."""
    return ((~entry << 5) & 0xFFFF_FFFF_FFFF_FFFF) >> 14


def swp_pfn(mm: AddressSpace, entry: int) -> int:
    """Return the PFN in a migration, hwpoison or device entry (swp_offset_pfn)."""
    return swp_offset(entry) & ((1 << mm.kernel.swp_pfn_bits[mm.levels - 4]) - 1)


def swp_software(entry: int) -> int:
    """Return soft-dirty and uffd-wp of a swap entry as the bits of a present one."""
    return (SOFT_DIRTY if entry & SWP_SOFT_DIRTY else 0) | (UFFD_WP if entry & SWP_UFFD_WP else 0)
