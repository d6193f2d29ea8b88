"""Page tables out of physical memory, from CR3 down, a level at a time.

Every table is read once for each level that it is used at, however many entries point to it.  So a
table that points to itself or is shared costs nothing more, and no chain of entries makes it endless.

Source: Intel SDM volume 3, chapter 4.5 (4-level and 5-level paging).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuhmm.dump.raw_tables import (
    FAULT_DTYPE,
    FAULT_MISSING,
    FAULT_RESERVED,
    RawTables,
)
from gpuhmm.errors import ImageError
from gpuhmm.image import MemorySource, as_source
from gpuhmm.mm.tables import NO_CHILD, Words
from gpuhmm.mm.x86 import PAGE_PRESENT, PAGE_PSE, PTE_PFN_MASK, level_shift
from gpuhmm.translation.canonical import canonical

#: Tables that are read at most: 4 GiB of them, enough for 2 TiB in pages of 4 KiB.
MAX_TABLES = 1 << 20

#: Tables that one read takes at most: 64 MiB.
_BATCH = 1 << 14


def load_tables(
    source: Any, cr3: int | None = None, *, levels: int | None = None, max_tables: int = MAX_TABLES
) -> RawTables:
    """Read the page tables that CR3 points to, both halves of the addresses.

    ``source`` is physical memory (see :func:`gpuhmm.image.as_source`), ``cr3`` the register or the
    address of the top table, ``levels`` 4 or 5; both may be left out where the image says them.
    Tables that are missing from the image and entries with reserved bits are no errors: they are in
    ``faults`` of the result.  ValueError without CR3, ImageError if it points to no top table, or
    to more than ``max_tables`` tables.
    """
    memory = as_source(source)
    root_pfn = _root_pfn(memory, cr3)
    levels = levels or memory.levels or 4
    if levels not in (4, 5):
        raise ValueError(f"levels must be 4 or 5 (got {levels})")
    pages, there = memory.read_pages(np.array([root_pfn], dtype=np.uint64))
    if not there[0]:
        raise ImageError(f"CR3 points to {root_pfn << 12:#x}, which the image does not hold")
    if not (pages & PAGE_PRESENT).any():
        raise ImageError(f"CR3 points to {root_pfn << 12:#x}, where no entry is present: no top table")
    loading = _Loading(memory, levels, max_tables)
    loading.start(root_pfn, pages)
    for level in range(levels, 1, -1):
        loading.descend(level)
    made = loading.result(root_pfn)
    if not made.nr_tables > 1 and not made.has_leaves:
        raise ImageError(
            f"CR3 points to {root_pfn << 12:#x}, which leads to no other table of the image: no top table"
        )
    return made


def _root_pfn(memory: MemorySource, cr3: int | None) -> int:
    if cr3 is None:
        if len(memory.cr3s) != 1:
            known = ", ".join(f"{value:#x}" for value in memory.cr3s) or "none"
            raise ValueError(f"CR3 must be given where the image does not say one (it says {known})")
        cr3 = memory.cr3s[0]
    if not 0 <= cr3 < 1 << 64:
        raise ValueError(f"CR3 must be a value of 64 bits (got {cr3:#x})")
    # The low 12 bits are PCID or flags, bit 63 says that the TLB may keep entries, 61 and 62 are LAM.
    return (cr3 & int(PTE_PFN_MASK)) >> 12


class _Loading:
    """The tables of one level after the other, and what was found on the way."""

    def __init__(self, memory: MemorySource, levels: int, max_tables: int) -> None:
        self.memory = memory
        self.levels = levels
        self.max_tables = max_tables
        self.upper: list[Words] = []
        self.child: list[np.ndarray] = []
        self.pfns: list[Words] = []  # of upper tables, level by level
        self.vas: list[Words] = []  # the lowest address that each covers
        self.leaf = np.empty((0, 512), dtype=np.uint64)
        self.leaf_pfns = np.empty(0, dtype=np.uint64)
        self.faults: list[np.ndarray] = []
        self.rows = 0  # upper tables so far
        self.total = 0

    def start(self, root_pfn: int, pages: Words) -> None:
        """Take the top table."""
        self._add(pages, np.array([root_pfn], dtype=np.uint64), np.zeros(1, dtype=np.uint64))

    def _add(self, pages: Words, pfns: Words, vas: Words) -> None:
        self.upper.append(pages)
        self.pfns.append(pfns)
        self.vas.append(vas)
        self.rows += len(pages)
        self.total += len(pages)

    def descend(self, level: int) -> None:
        """Read every table that the tables of ``level`` point to."""
        pages, vas = self.upper[-1], self.vas[-1]
        present = (pages & PAGE_PRESENT) != 0
        large = present & ((pages & PAGE_PSE) != 0)
        if level > 3:
            self._note(FAULT_RESERVED, level, vas, pages, *np.nonzero(large))
        rows, slots = np.nonzero(present & ~large)
        entries = pages[rows, slots]
        addresses = vas[rows] + (slots.astype(np.uint64) << np.uint64(level_shift(level)))
        wanted, place = np.unique((entries & PTE_PFN_MASK) >> np.uint64(12), return_inverse=True)
        lowest = np.full(len(wanted), np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(lowest, place, addresses)
        self._check_total(len(wanted))
        tables, there = self._read(wanted)
        self._note(FAULT_MISSING, level, vas, pages, rows[~there[place]], slots[~there[place]])
        kept = np.cumsum(there) - 1 + (self.rows if level > 2 else 0)
        child = np.full(pages.shape, NO_CHILD, dtype=np.int32)
        child[rows, slots] = np.where(there[place], kept[place], NO_CHILD)
        self.child.append(child)
        if not there.all():
            tables = tables[there]
        if level > 2:
            self._add(tables, wanted[there], lowest[there])
        else:
            self.leaf, self.leaf_pfns = tables, wanted[there]
            self.total += len(tables)

    def _check_total(self, more: int) -> None:
        if self.total + more > self.max_tables:
            raise ImageError(
                f"CR3 leads to more than {self.max_tables} page tables: it is none, or max_tables must be "
                f"raised (got at least {self.total + more})"
            )

    def _read(self, pfns: Words) -> tuple[Words, np.ndarray]:
        if len(pfns) <= _BATCH:
            return self.memory.read_pages(pfns)
        pages = np.empty((len(pfns), 512), dtype=np.uint64)
        there = np.empty(len(pfns), dtype=np.bool_)
        for at in range(0, len(pfns), _BATCH):
            part = slice(at, at + _BATCH)
            pages[part], there[part] = self.memory.read_pages(pfns[part])
        return pages, there

    def _note(
        self, kind: int, level: int, vas: Words, pages: Words, rows: np.ndarray, slots: np.ndarray
    ) -> None:
        """Keep the entries at ``rows`` and ``slots`` as faults."""
        faults = np.empty(len(rows), dtype=FAULT_DTYPE)
        faults["kind"] = kind
        faults["level"] = level
        faults["row"] = self.rows - len(pages) + rows
        faults["slot"] = slots
        shift = np.uint64(level_shift(level))
        faults["va"] = canonical(vas[rows] + (slots.astype(np.uint64) << shift), self.levels)
        faults["entry"] = pages[rows, slots]
        self.faults.append(faults)

    def result(self, root_pfn: int) -> RawTables:
        """Return what was read."""
        counts = [len(pages) for pages in self.upper]
        levels = np.repeat(np.arange(self.levels, 1, -1, dtype=np.uint8), counts)
        return RawTables(
            levels=self.levels,
            root_pfn=root_pfn,
            upper=np.concatenate(self.upper),
            child=np.concatenate(self.child),
            leaf=np.ascontiguousarray(self.leaf),
            upper_pfns=np.concatenate(self.pfns),
            upper_levels=levels,
            leaf_pfns=self.leaf_pfns,
            faults=np.concatenate(self.faults),
            origin=self.memory.describe(),
        )
