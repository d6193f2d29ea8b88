"""The reference's page-table walk: ``walk_page_range()`` in plain Python.

Read it next to mm/pagewalk.c: the functions have the kernel's names and its order of tests.

Source: mm/pagewalk.c (v5.18; later ones where the profile says so).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from errno import EINVAL
from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.mm import x86
from gpuhmm.mm.tables import Words
from gpuhmm.mm.vma import Vma
from gpuhmm.mm.x86 import U64, level_shift

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace


class WalkDisturbedError(Exception):
    """Another thread changed the tables while the walk gave up its hold on them, to change them itself."""


class PageWalk(ABC):
    """A ``struct mm_walk``; a subclass gives its ``struct mm_walk_ops``.

    Every operation returns 0 to go on and a negative errno to end the walk.
    """

    def __init__(self, mm: AddressSpace) -> None:
        self.mm = mm
        self.devmap = U64(mm.kernel.page_devmap)
        self.vma: Vma | None = None
        #: Huge PUDs that the walk split; a subclass may set it back.
        self.splits = 0

    @abstractmethod
    def test_walk(self, start: int, end: int) -> int:
        """Say whether to walk this piece of a VMA: a positive number leaves it out."""

    @abstractmethod
    def pte_hole(self, addr: int, end: int) -> int:
        """Handle a piece without any entry."""

    @abstractmethod
    def pud_entry(self, entry: np.uint64, addr: int, end: int) -> tuple[bool, int]:
        """Handle a PUD; return whether to go on below it as well, and the return code."""

    @abstractmethod
    def pmd_entry(self, entry: np.uint64, start: int, end: int) -> int:
        """Handle a PMD and everything below it."""

    @abstractmethod
    def hugetlb_entry(self, entry: np.uint64, start: int, end: int) -> int:
        """Handle a page of a hugetlb area."""

    def walk_page_range(self, start: int, end: int) -> int:
        if start >= end:
            return -EINVAL
        while start < end:
            vma = self.mm.vmas.find(start)
            if vma is None:
                self.vma, next_ = None, end
            elif start < vma.start:
                self.vma, next_ = None, min(end, vma.start)
            else:
                self.vma, next_ = vma, min(end, vma.end)
                ret = self.test_walk(start, next_)
                if ret > 0:
                    start = next_
                    continue
                if ret < 0:
                    return ret
            ret = self.walk_vma_piece(start, next_)
            if ret:
                return ret
            start = next_
        return 0

    def walk_vma_piece(self, start: int, end: int) -> int:
        if self.vma is None and self.mm.kernel.no_vma_single_hole:
            return self.pte_hole(start, end)
        if self.vma is not None and self.vma.is_hugetlb:
            return self.walk_hugetlb_range(start, end)
        if self.mm.levels == 5:
            return self.walk_pgd_range(start, end)
        return self.walk_p4d_range(self.mm.root_pfn, start, end)

    def walk_pgd_range(self, addr: int, end: int) -> int:
        while addr < end:
            next_ = _entry_end(addr, end, 5)
            entry = self.read(self.mm.root_pfn, addr, 5)
            if x86.pgd_none(entry) or self.clear_bad(bool(x86.pgd_bad(entry)), addr, 5):
                ret = self.pte_hole(addr, next_)
            else:
                ret = self.walk_p4d_range(int(x86.table_pfn(entry)), addr, next_)
            if ret:
                return ret
            addr = next_
        return 0

    def walk_p4d_range(self, table: int, addr: int, end: int) -> int:
        while addr < end:
            next_ = _entry_end(addr, end, 4)
            entry = self.read(table, addr, 4)
            if x86.entry_none(entry) or self.clear_bad(bool(x86.p4d_bad(entry)), addr, 4):
                ret = self.pte_hole(addr, next_)
            else:
                ret = self.walk_pud_range(int(x86.table_pfn(entry)), addr, next_)
            if ret:
                return ret
            addr = next_
        return 0

    def walk_pud_range(self, table: int, addr: int, end: int) -> int:
        while addr < end:
            next_ = _entry_end(addr, end, 3)
            ret = self.walk_pud(table, addr, next_)
            if ret:
                return ret
            addr = next_
        return 0

    def walk_pud(self, table: int, addr: int, end: int) -> int:
        while True:
            entry = self.read(table, addr, 3)
            if x86.entry_none(entry) or self.vma is None:
                return self.pte_hole(addr, end)
            descend, ret = self.pud_entry(entry, addr, end)
            if ret or not descend:
                return ret
            if x86.entry_trans_huge(entry, self.devmap) or x86.entry_devmap(entry, self.devmap):
                # __split_huge_pud: without a file page behind it nothing is left
                self.clear(addr, 3)
                self.splits += 1
                continue
            return self.walk_pmd_range(int(x86.table_pfn(entry)), addr, end)

    def walk_pmd_range(self, table: int, addr: int, end: int) -> int:
        while addr < end:
            next_ = _entry_end(addr, end, 2)
            entry = self.read(table, addr, 2)
            if x86.entry_none(entry):
                ret = self.pte_hole(addr, next_)
            else:
                ret = self.pmd_entry(entry, addr, next_)
            if ret:
                return ret
            addr = next_
        return 0

    def walk_hugetlb_range(self, addr: int, end: int) -> int:
        assert self.vma is not None
        size = 1 << self.vma.page_shift
        while addr < end:
            next_ = min((addr & -size) + size, end)
            entry = self.huge_pte_offset(addr)
            if entry is None:
                ret = self.pte_hole(addr, next_)
            else:
                ret = self.hugetlb_entry(entry, addr, next_)
            if ret:
                return ret
            addr = next_
        return 0

    def huge_pte_offset(self, addr: int) -> np.uint64 | None:
        assert self.vma is not None
        table = self.mm.root_pfn
        leaf = 3 if self.vma.page_shift == 30 else 2
        for level in range(self.mm.levels, leaf, -1):
            entry = self.read(table, addr, level)
            if not x86.entry_present(entry):
                return None
            table = int(x86.table_pfn(entry))
        return self.read(table, addr, leaf)

    def clear_bad(self, bad: bool, addr: int, level: int) -> bool:
        if bad:
            self.clear(addr, level)
        return bad

    def clear(self, addr: int, level: int) -> None:
        """Store 0 in an entry that this walk has just read."""
        with self.mm.mmap_lock.write() as undisturbed:
            if not undisturbed:
                raise WalkDisturbedError
            self.mm.set_entry(addr, level, 0)

    def read(self, table: int, addr: int, level: int) -> np.uint64:
        return U64(self.table(table, addr, level)[addr >> level_shift(level) & 511])

    def table(self, table: int, addr: int, level: int) -> Words:
        try:
            return self.mm.page_tables.page(table)
        except KeyError:
            raise ValueError(
                f"the walk of va {addr:#x} needs the level {level} table of PFN {table:#x}, which is missing"
            ) from None


def _entry_end(addr: int, end: int, level: int) -> int:
    """p4d_addr_end and kin: where the entry of ``level`` over ``addr`` ends, at most ``end``."""
    size = 1 << level_shift(level)
    return min((addr & -size) + size, end)
