"""Page tables out of physical memory, from CR3 down, a level at a time.

Every table is read once for each level that it is used at, however many entries point to it.  So a
table that points to itself or is shared costs nothing more, and no chain of entries makes it endless.

Source: Intel SDM volume 3, chapter 4.5 (4-level and 5-level paging).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.dump.raw_tables import (
    FAULT_DTYPE,
    FAULT_MISSING,
    FAULT_RESERVED,
    RawTables,
)
from gpuhmm.dump.roots import paging_levels
from gpuhmm.errors import ImageError
from gpuhmm.image import MemorySource, as_source
from gpuhmm.mm.tables import NO_CHILD, Words
from gpuhmm.mm.x86 import PAGE_PRESENT, PAGE_PROTNONE, PAGE_PSE, PTE_PFN_MASK, U64, level_shift
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
    address of the top table, ``levels`` 4 or 5; both may be left out where the image says them, and levels
    where the kernel's text shows them (:mod:`gpuhmm.dump.roots`).
    Tables that are missing from the image and entries with reserved bits are no errors: they are in
    ``faults`` of the result.  ValueError without CR3, ImageError if it points to no top table, or
    to more than ``max_tables`` tables.
    """
    memory = as_source(source)
    root_pfn = _root_pfn(memory, cr3)
    wrong = f"CR3 points to {root_pfn << 12:#x}, "
    if levels not in (None, 4, 5):
        raise ValueError(f"levels must be 4 or 5 (got {levels})")
    pages, there = memory.read_pages(np.array([root_pfn], dtype=np.uint64))
    if not there[0]:
        advice = _encryption_advice(np.array([root_pfn << 12], dtype=np.uint64))
        raise ImageError(f"{wrong}which the image does not hold{advice}{memory.hint}")
    present = pages[(pages & PAGE_PRESENT) != 0]
    if not len(present):
        raise ImageError(f"{wrong}where no entry is present: no top table{memory.hint}")
    notes = []
    levels = levels or memory.levels or paging_levels(memory, pages[0])
    if levels is None:
        levels = 4
        notes.append("nothing says how many levels the tables have: 4 were taken (--levels)")
    loading = _Loading(memory, levels, max_tables)
    loading.start(root_pfn, _uniform(memory, pages, levels))
    for level in range(levels, 1, -1):
        loading.descend(level)
    made = loading.result(root_pfn, tuple(notes))
    if not made.nr_tables > 1 and not made.has_leaves:
        raise ImageError(
            f"{wrong}which leads to no other table of the image: no top table"
            f"{_encryption_advice(present)}{memory.hint}"
        )
    return made


def root_of(memory: MemorySource, cr3: int) -> int:
    """Return the address of the top table that a value of CR3 points to.

    The low 12 bits are PCID or flags, bit 63 says that the TLB may keep entries, 61 and 62 are LAM.
    """
    return cr3 & int(PTE_PFN_MASK) & ~memory.sme_mask


def processor_roots(memory: MemorySource) -> list[int]:
    """Return the addresses of the top tables of the processors, each once; one that never ran has CR3 0."""
    return [root for root in dict.fromkeys(root_of(memory, cr3) for cr3 in memory.cr3s) if root]


def _root_pfn(memory: MemorySource, cr3: int | None) -> int:
    if cr3 is None:
        roots = processor_roots(memory)
        if len(roots) != 1:
            known = ", ".join(f"{value:#x}" for value in roots) or "none"
            raise ValueError(f"CR3 must be given where the image does not say one (it says {known})")
        cr3 = roots[0]
    if not 0 <= cr3 < 1 << 64:
        raise ValueError(f"CR3 must be a value of 64 bits (got {cr3:#x})")
    if not root_of(memory, cr3):
        raise ValueError(f"CR3 must point to a table (got {cr3:#x}, that of a processor that never ran)")
    return root_of(memory, cr3) >> 12


def _encryption_advice(addresses: Words) -> str:
    """Return advice if all ``addresses`` have bit 47 or 51, those that AMD's processors encrypt with."""
    for bit in (47, 51):
        if int(np.bitwise_and.reduce(addresses)) >> bit & 1:
            return f"; bit {bit} is set: if AMD's SME or SEV encrypts the memory, --sme-mask {1 << bit:#x}"
    return ""


def _uniform(memory: MemorySource, pages: Words, level: int) -> Words:
    """Return entries of ``level`` without the encryption bit, and with inverted PFNs in PROT_NONE ones.

    The encryption bit is a flag that is never inverted, and swap entries have none
    (arch/x86/include/asm/pgtable.h: pfn_pte, protnone_mask; pgtable_64.h: __swp_entry; v6.1).
    """
    if not memory.sme_mask and not memory.upright_protnone:
        return pages
    mask = U64(memory.sme_mask)
    kind = PAGE_PRESENT | PAGE_PROTNONE | (PAGE_PSE if level > 1 else U64(0))
    no_access = (pages & kind) == kind & ~PAGE_PRESENT
    inverted = pages ^ PTE_PFN_MASK if memory.upright_protnone else pages
    return np.where((pages & PAGE_PRESENT) != 0, pages & ~mask, np.where(no_access, inverted | mask, pages))


def _reserved(pages: Words, large: npt.NDArray[np.bool_], level: int) -> npt.NDArray[np.bool_]:
    """Return which of the ``large`` entries hardware refuses (Intel SDM volume 3, tables 4-16 and 4-18)."""
    if level > 3:
        return large
    inside = U64((1 << level_shift(level)) - (1 << 13))  # bit 12 is PAT
    return large & ((pages & inside) != 0)


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
        self._note(FAULT_RESERVED, level, vas, pages, *np.nonzero(_reserved(pages, large, level)))
        rows, slots = np.nonzero(present & ~large)
        entries = pages[rows, slots]
        addresses = vas[rows] + (slots.astype(np.uint64) << np.uint64(level_shift(level)))
        wanted, place = np.unique((entries & PTE_PFN_MASK) >> np.uint64(12), return_inverse=True)
        lowest = np.full(len(wanted), np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(lowest, place, addresses)
        self._check_total(len(wanted))
        tables, there = self._read(wanted, level - 1)
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

    def _read(self, pfns: Words, level: int) -> tuple[Words, np.ndarray]:
        pages = np.empty((len(pfns), 512), dtype=np.uint64)
        there = np.empty(len(pfns), dtype=np.bool_)
        for at in range(0, len(pfns), _BATCH):
            part = slice(at, at + _BATCH)
            found, there[part] = self.memory.read_pages(pfns[part])
            pages[part] = _uniform(self.memory, found, level)
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

    def result(self, root_pfn: int, notes: tuple[str, ...]) -> RawTables:
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
            notes=notes,
        )
