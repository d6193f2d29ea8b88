"""Page-table pages: raw x86-64 entries, kept so that a walk never searches for a PFN.

Leaf tables (level 1) and upper tables (levels 2 to 5) lie in one dense array each; next to every
upper entry stands the row of the table that it points to.

Who stores entries does it in one of four ways, so that these rows and the logs of changes stay right:

* one entry: :meth:`PageTables.set_entry`, which alone makes and finds tables (``Fault.store`` is it at the
  address of a fault, ``AddressSpace.set_entry`` it for the world outside, under ``mmap_lock``);
* a run of entries in one table, none of which points to a table: :meth:`PageTables.store`;
* a run of PMDs that each get a new leaf table: :meth:`PageTables.attach_leaf_tables`;
* compiled code that writes into :attr:`PageTables.leaf` itself: :meth:`PageTables.leaf_changed` afterwards.

Tables that exist already are taken in by :mod:`gpuhmm.mm.given_tables`.
"""

from __future__ import annotations

from itertools import repeat
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gpuhmm.mm import x86
from gpuhmm.mm.arguments import check_pfn
from gpuhmm.mm.entry import NONE, is_leaf, points_to_table, table_pfn
from gpuhmm.mm.profile import KernelProfile
from gpuhmm.mm.x86 import level_shift

Words = npt.NDArray[np.uint64]

Entry = TypeVar("Entry", bound=np.generic)

#: Stands next to an upper entry that points to no table.
NO_CHILD = -1


class ChangeLog:
    """What changed since somebody last looked: rows of leaf and of upper tables."""

    def __init__(self) -> None:
        self.leaf: set[int] = set()
        self.upper: set[int] = set()

    def clear(self) -> None:
        """Forget everything that was noted."""
        self.leaf.clear()
        self.upper.clear()


class PageTables:
    """The tables of one address space.

    ``upper`` is uint64[n_upper, 512] with the root in row 0, ``child`` int32[n_upper, 512] the row
    of the table behind each entry or ``NO_CHILD``, ``leaf`` uint64[n_leaf, 512].  ``kernel`` says which
    entries are leaves, and which are bad.
    """

    def __init__(self, levels: int, root_pfn: int, kernel: KernelProfile) -> None:
        if levels not in (4, 5):
            raise ValueError(f"levels must be 4 or 5 (got {levels})")
        check_pfn("root_pfn", root_pfn)
        self.kernel = kernel
        self.levels = levels
        self.root_pfn = root_pfn
        self.clock = 0  # how many entries were stored so far
        self._upper = np.zeros((8, 512), dtype=np.uint64)
        self._child = np.full((8, 512), NO_CHILD, dtype=np.int32)
        self._leaf = np.zeros((8, 512), dtype=np.uint64)
        self._counts = [0, 0]  # rows up to the last one in use: leaf, upper
        self._dropped: tuple[list[int], list[int]] = ([], [])  # rows below that are free again
        self.where: dict[int, tuple[int, int]] = {}  # PFN of a table -> its level and row
        self.unreached: dict[int, Words] = {}  # tables that were given but that nothing points to
        self._logs: list[ChangeLog] = []
        self.add_table(root_pfn, levels)

    # -- what the walks read ------------------------------------------------------------------

    @property
    def upper(self) -> Words:
        """uint64[n_upper, 512], a view."""
        return self._upper[: self._counts[1]]

    @property
    def child(self) -> npt.NDArray[np.int32]:
        """int32[n_upper, 512], a view."""
        return self._child[: self._counts[1]]

    @property
    def leaf(self) -> Words:
        """uint64[n_leaf, 512], a view."""
        return self._leaf[: self._counts[0]]

    def page(self, pfn: int) -> Words:
        """Return the table with that PFN, uint64[512], a view.  KeyError if there is none."""
        level, row = self.where[pfn]
        return self._leaf[row] if level == 1 else self._upper[row]

    def pages(self) -> tuple[Words, Words]:
        """Return the PFNs, uint64[n], and the tables, uint64[n, 512], of every known table: a copy."""
        pfns = [*self.where, *self.unreached]
        pages = np.empty((len(pfns), 512), dtype=np.uint64)
        for i, pfn in enumerate(pfns):
            pages[i] = self.page(pfn) if pfn in self.where else self.unreached[pfn]
        return np.array(pfns, dtype=np.uint64), pages

    def row(self, va: int, level: int) -> int:
        """Return the row of the table whose entries of ``level`` cover ``va``, or ``NO_CHILD``."""
        row = 0
        for upper in range(self.levels, level, -1):
            row = int(self._child[row, va >> level_shift(upper) & 511])
            if row == NO_CHILD:
                break
        return row

    def lowest(self, va: int) -> int:
        """Return the level of the lowest table over ``va``: what maps it, or nothing, is an entry there."""
        row = 0
        for level in range(self.levels, 1, -1):
            row = int(self._child[row, va >> level_shift(level) & 511])
            if row == NO_CHILD:
                return level
        return 1

    def entry(self, va: int, level: int) -> int:
        """Return the raw entry; 0 where no table covers ``va`` at that level."""
        self._check_address(va, level)
        row = self.row(va, level)
        if row == NO_CHILD:
            return 0
        pool = self._leaf if level == 1 else self._upper
        return int(pool[row, va >> level_shift(level) & 511])

    # -- what changes them --------------------------------------------------------------------

    def watch(self) -> ChangeLog:
        """Return a log in which every later change is noted."""
        log = ChangeLog()
        self._logs.append(log)
        return log

    def set_entry(self, va: int, level: int, value: int) -> None:
        """Store a raw entry; one that points to an unknown table adds an empty table of that PFN.

        ValueError if no table covers ``va`` at that level, if the value exceeds 64 bits, or if its
        PFN is a table of another level already.
        """
        self._check_address(va, level)
        value = int(value)
        if not 0 <= value < 1 << 64:
            raise ValueError(f"an entry must fit in 64 bits (got {value:#x})")
        row = self.row(va, level)
        if row == NO_CHILD:
            raise ValueError(f"no table of level {level} covers va {va:#x}: set the entry above it first")
        slot = va >> level_shift(level) & 511
        if level == 1:
            self._leaf[row, slot] = value
        else:
            child = self.child_of(value, level)
            self._upper[row, slot] = value
            self._child[row, slot] = child
        self._changed(level, row)

    def child_of(self, value: int, level: int) -> int:
        """Return the row of the table to which an entry of ``level`` leads, or ``NO_CHILD``.

        A table that is not known yet is added, with all that it leads to: see :meth:`set_entry`.
        """
        pfn = table_pfn(value)
        if not points_to_table(value, level, self.kernel.huge_bits):
            # A wild entry that a walk would follow all the same, as the kernel does.
            known = self.where.get(pfn)
            wild = level >= 3 and not is_leaf(value, level, self.kernel.huge_bits) and value & ~NONE
            return known[1] if wild and known is not None and known[0] == level - 1 else NO_CHILD
        if pfn not in self.where:
            row = self.add_table(pfn, level - 1)
            for slot in np.flatnonzero(self._upper[row]) if level > 2 else ():
                self._child[row, slot] = self.child_of(int(self._upper[row, slot]), level - 1)
            return row
        known_level, row = self.where[pfn]
        if known_level != level - 1:
            raise ValueError(
                f"table PFN {pfn:#x} must not be used at two levels (got {level - 1} and {known_level})"
            )
        return row

    def add_table(self, pfn: int, level: int) -> int:
        """Give the table of that PFN a row, and return it: with the content that came with it, or empty."""
        which = 0 if level == 1 else 1
        if self._dropped[which]:
            row = self._dropped[which].pop()
        else:
            row = self._counts[which]
            self.reserve(leaf=row + 1) if which == 0 else self.reserve(upper=row + 1)
            self._counts[which] += 1
        content = self.unreached.pop(pfn, None)
        (self._upper if which else self._leaf)[row] = 0 if content is None else content
        self.where[pfn] = (level, row)
        self._note(level, row)
        return row

    def drop_table(self, va: int, level: int) -> int | None:
        """Forget the table whose entries of ``level`` cover ``va``, and clear the entry that points to it.

        Return its PFN, None if there is no such table.  Its entries must point to no table.  ValueError
        for the top table.
        """
        if not 1 <= level < self.levels:
            raise ValueError(f"level must be 1 to {self.levels - 1} (got {level})")
        row = self.row(va, level)
        if row == NO_CHILD:
            return None
        pfn = table_pfn(self.entry(va, level + 1))
        if level > 1 and (self._child[row] != NO_CHILD).any():
            raise ValueError(f"the level {level} table over va {va:#x} must be empty of tables to be dropped")
        self.set_entry(va, level + 1, 0)
        del self.where[pfn]
        (self._leaf if level == 1 else self._upper)[row] = 0
        self._dropped[0 if level == 1 else 1].append(row)
        self._note(level, row)
        return pfn

    def reserve(self, leaf: int = 0, upper: int = 0) -> None:
        """Make room for that many tables, so that adding them copies nothing."""
        if leaf > len(self._leaf):
            self._leaf = _grown(self._leaf, leaf, 0)
        if upper > len(self._upper):
            self._upper = _grown(self._upper, upper, 0)
            self._child = _grown(self._child, upper, NO_CHILD)

    def store(self, level: int, row: int, slot: int, entries: Words) -> None:
        """Store consecutive entries of the table of ``level`` in ``row``; none of them points to a table."""
        where = slice(slot, slot + len(entries))
        if level == 1:
            self._leaf[row, where] = entries
        else:
            self._upper[row, where] = entries
            self._child[row, where] = NO_CHILD
        self._changed(level, row)

    def attach_leaf_tables(self, row: int, slot: int, entries: Words) -> Words:
        """Store PMDs that each point to a new leaf table; return the tables, uint64[n, 512], a view."""
        first, count = self._counts[0], len(entries)
        self.reserve(leaf=first + count)
        rows = range(first, first + count)
        self._upper[row, slot : slot + count] = entries
        self._child[row, slot : slot + count] = rows
        pfns = ((entries & x86.PTE_PFN_MASK) >> x86.PAGE_SHIFT).tolist()
        self.where.update(zip(pfns, zip(repeat(1), rows), strict=False))
        self._counts[0] += count
        self._changed(2, row)
        for log in self._logs:
            log.leaf.update(rows)
        return self._leaf[first : first + count]

    def leaf_changed(self, row: int) -> None:
        """Say that entries of a leaf table were stored into :attr:`leaf` itself."""
        self._changed(1, row)

    def _changed(self, level: int, row: int) -> None:
        self.clock += 1
        self._note(level, row)

    def _note(self, level: int, row: int) -> None:
        for log in self._logs:
            (log.leaf if level == 1 else log.upper).add(row)

    def _check_address(self, va: int, level: int) -> None:
        if not 1 <= level <= self.levels:
            raise ValueError(f"level must be 1 to {self.levels} (got {level})")
        if not 0 <= va < 1 << (12 + 9 * self.levels):
            raise ValueError(f"va must lie below 2^{12 + 9 * self.levels} (got {va:#x})")

    def take_pools(
        self, upper: Words, child: npt.NDArray[np.int32], leaf: Words, where: dict[int, tuple[int, int]]
    ) -> None:
        """Lie in these arrays from now on, which must fit each other; ``where`` is :attr:`where`."""
        self._upper, self._child, self._leaf = upper, child, leaf
        self._counts = [len(leaf), len(upper)]
        self.where = where


def _grown(pool: npt.NDArray[Entry], needed: int, fill: int) -> npt.NDArray[Entry]:
    shape = (max(needed, 2 * len(pool)), 512)
    grown = np.zeros(shape, dtype=pool.dtype) if not fill else np.full(shape, fill, dtype=pool.dtype)
    grown[: len(pool)] = pool
    return grown
