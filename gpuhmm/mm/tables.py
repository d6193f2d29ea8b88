"""Page-table pages: raw x86-64 entries, kept so that a walk never searches for a PFN.

Leaf tables (level 1) and upper tables (levels 2 to 5) lie in one dense array each; next to every
upper entry stands the row of the table that it points to.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gpuhmm.mm import x86
from gpuhmm.mm.arguments import check_array, check_pfn
from gpuhmm.mm.x86 import U64, level_shift

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
    of the table behind each entry or ``NO_CHILD``, ``leaf`` uint64[n_leaf, 512].
    """

    def __init__(self, levels: int, root_pfn: int) -> None:
        if levels not in (4, 5):
            raise ValueError(f"levels must be 4 or 5 (got {levels})")
        check_pfn("root_pfn", root_pfn)
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
        self._new_table(root_pfn, levels)

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

    def unwatch(self, log: ChangeLog) -> None:
        """Stop noting changes in ``log``."""
        self._logs.remove(log)

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
            for log in self._logs:
                log.leaf.add(row)
        else:
            child = self._child_of(value, level)
            self._upper[row, slot] = value
            self._child[row, slot] = child
            for log in self._logs:
                log.upper.add(row)
        self.clock += 1

    def _child_of(self, value: int, level: int) -> int:
        pfn = (value & int(x86.PTE_PFN_MASK)) >> 12
        if not points_to_table(value, level):
            # A wild entry that a walk would follow all the same, as the kernel does.
            known = self.where.get(pfn)
            wild = level >= 3 and not _huge(value, level) and value & ~int(x86.KNL_ERRATUM_MASK)
            return known[1] if wild and known is not None and known[0] == level - 1 else NO_CHILD
        if pfn not in self.where:
            return self._new_table(pfn, level - 1)
        known_level, row = self.where[pfn]
        if known_level != level - 1:
            raise ValueError(
                f"table PFN {pfn:#x} must not be used at two levels (got {level - 1} and {known_level})"
            )
        return row

    def _new_table(self, pfn: int, level: int) -> int:
        """Add a table: with the content that came with it, or empty."""
        which = 0 if level == 1 else 1
        if self._dropped[which]:
            row = self._dropped[which].pop()
        else:
            row = self._counts[which]
            self.reserve(leaf=row + 1) if which == 0 else self.reserve(upper=row + 1)
            self._counts[which] += 1
        pool = self._upper if which else self._leaf
        content = self.unreached.pop(pfn, None)
        pool[row] = 0 if content is None else content
        self.where[pfn] = (level, row)
        for log in self._logs:
            (log.upper if which else log.leaf).add(row)
        if content is not None and level > 1:
            for slot in np.flatnonzero(content):
                self._child[row, slot] = self._child_of(int(content[slot]), level)
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
        pfn = (self.entry(va, level + 1) & int(x86.PTE_PFN_MASK)) >> 12
        if level > 1 and (self._child[row] != NO_CHILD).any():
            raise ValueError(f"the level {level} table over va {va:#x} must be empty of tables to be dropped")
        self.set_entry(va, level + 1, 0)
        del self.where[pfn]
        (self._leaf if level == 1 else self._upper)[row] = 0
        self._dropped[0 if level == 1 else 1].append(row)
        for log in self._logs:
            (log.leaf if level == 1 else log.upper).add(row)
        return pfn

    def reserve(self, leaf: int = 0, upper: int = 0) -> None:
        """Make room for that many tables, so that adding them copies nothing."""
        if leaf > len(self._leaf):
            self._leaf = _grown(self._leaf, leaf, 0)
        if upper > len(self._upper):
            self._upper = _grown(self._upper, upper, 0)
            self._child = _grown(self._child, upper, NO_CHILD)

    def store_leaf(self, row: int, slot: int, entries: Words) -> None:
        """Store consecutive PTEs of one leaf table."""
        self._leaf[row, slot : slot + len(entries)] = entries
        self.clock += 1
        for log in self._logs:
            log.leaf.add(row)

    def store_upper(self, row: int, slot: int, entries: Words) -> None:
        """Store consecutive upper entries, none of which points to a table."""
        self._upper[row, slot : slot + len(entries)] = entries
        self._child[row, slot : slot + len(entries)] = NO_CHILD
        self.clock += 1
        for log in self._logs:
            log.upper.add(row)

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
        self.clock += 1
        for log in self._logs:
            log.upper.add(row)
            log.leaf.update(rows)
        return self._leaf[first : first + count]

    def leaf_changed(self, row: int) -> None:
        """Say that entries of a leaf table were stored without :meth:`store_leaf`."""
        self.clock += 1
        for log in self._logs:
            log.leaf.add(row)

    def _check_address(self, va: int, level: int) -> None:
        if not 1 <= level <= self.levels:
            raise ValueError(f"level must be 1 to {self.levels} (got {level})")
        if not 0 <= va < 1 << (12 + 9 * self.levels):
            raise ValueError(f"va must lie below 2^{12 + 9 * self.levels} (got {va:#x})")

    # -- construction from given pages --------------------------------------------------------

    @classmethod
    def from_pages(
        cls, levels: int, root_pfn: int, table_pfns: Words, tables: Words, pmd_bad_ignores: int
    ) -> PageTables:
        """Build the tables from their pages, whatever their order.

        ``table_pfns`` is uint64[n], ``tables`` uint64[n, 512].  ValueError, with level and address,
        for a PFN that comes twice, a missing root, an entry that points to a missing table, a cycle
        and a table used at two levels.
        """
        check_array("table_pfns", table_pfns, (None,))
        check_array("tables", tables, (len(table_pfns), 512))
        made = cls(levels, root_pfn)
        for pfn, page in zip(table_pfns.tolist(), tables, strict=True):
            check_pfn("a table PFN", pfn)
            if pfn in made.unreached:
                raise ValueError(f"table_pfns must be distinct (got {pfn:#x} twice)")
            made.unreached[pfn] = page
        if root_pfn not in made.unreached:
            raise ValueError(f"root_pfn must be one of table_pfns (got {root_pfn:#x})")
        made.reserve(leaf=len(table_pfns))
        made._upper[0] = made.unreached.pop(root_pfn)
        optional = list(made._attach_all(pmd_bad_ignores))
        for level, row, slot in optional:  # what only hugetlb areas follow, once the rest is known
            value = int(made._upper[row, slot])
            pfn = (value & int(x86.PTE_PFN_MASK)) >> 12
            if pfn in made.unreached or made.where.get(pfn, (0, 0))[0] == level - 1:
                made._child[row, slot] = made._child_of(value, level)
        made.unreached = {pfn: page.copy() for pfn, page in made.unreached.items()}
        return made

    @classmethod
    def from_pools(
        cls,
        levels: int,
        *,
        upper: Words,
        child: npt.NDArray[np.int32],
        leaf: Words,
        where: Words,
        unreached: dict[int, Words],
    ) -> PageTables:
        """Return tables made of the arrays themselves, which are not copied and must be writable.

        They are those of :attr:`upper`, :attr:`child` and :attr:`leaf`; ``where`` is uint64[n, 3], the PFN,
        level and row of every table, the top one first.  ValueError unless every table is there once
        and every child is the table of the next level that its entry points to.
        """
        check_array("upper", upper, (None, 512))
        check_array("leaf", leaf, (None, 512))
        check_array("where", where, (len(upper) + len(leaf), 3))
        if child.dtype != np.int32 or child.shape != upper.shape or not child.flags.c_contiguous:
            raise ValueError(f"child must be int32{list(upper.shape)} (got {child.dtype}{list(child.shape)})")
        if not len(upper) or where[0].tolist()[1:] != [levels, 0]:
            raise ValueError("where must begin with the top table in row 0")
        _check_pools(levels, upper, child, leaf, where)
        made = cls(levels, int(where[0, 0]))
        made._upper, made._child, made._leaf = upper, child, leaf
        made._counts = [len(leaf), len(upper)]
        made.where = {pfn: (level, row) for pfn, level, row in where.tolist()}
        made.unreached = unreached
        return made

    def _attach_all(self, pmd_bad_ignores: int) -> Iterator[tuple[int, int, int]]:
        """Give every table that a walk can reach its row; yield the entries that walks only may follow."""
        rows = [(0, 0)]  # row of a table of this level, and the first address that it covers
        for level in range(self.levels, 1, -1):
            below = []
            for row, base in rows:
                page = self._upper[row]
                for slot in np.flatnonzero(page).tolist():
                    value = int(page[slot])
                    va = base + (slot << level_shift(level))
                    if not points_to_table(value, level):
                        if level >= 3 and not _huge(value, level):
                            yield level, row, slot
                        continue
                    if _is_bad(value, level, self.levels, pmd_bad_ignores):
                        yield level, row, slot
                        continue
                    pfn = (value & int(x86.PTE_PFN_MASK)) >> 12
                    fresh = self._attach(pfn, level, row, slot, va)
                    if fresh is not None:
                        below.append((fresh, va))
            rows = below

    def _attach(self, pfn: int, level: int, row: int, slot: int, va: int) -> int | None:
        known = self.where.get(pfn)
        if known is None:
            if pfn not in self.unreached:
                raise ValueError(
                    f"the level {level} entry of va {va:#x} points to table PFN {pfn:#x}, which is missing"
                )
            page = self.unreached.pop(pfn)
            which = 0 if level == 2 else 1
            fresh = self._counts[which]
            self.reserve(upper=fresh + 1 if which else 0, leaf=0 if which else fresh + 1)
            (self._upper if which else self._leaf)[fresh] = page
            self._counts[which] += 1
            self.where[pfn] = (level - 1, fresh)
            self._child[row, slot] = fresh
            return fresh
        if known[0] != level - 1:
            kind = "a cycle" if known[0] >= level else "a table at two levels"
            raise ValueError(
                f"page tables must form a tree: {kind}, the level {level} entry of va {va:#x} points to "
                f"table PFN {pfn:#x}, which is used at level {known[0]}"
            )
        self._child[row, slot] = known[1]
        return None


def _check_pools(levels: int, upper: Words, child: npt.NDArray[np.int32], leaf: Words, where: Words) -> None:
    """ValueError unless ``where`` names every row once and every child is the table that it should be."""
    pfns, table_levels, rows = where.T
    is_leaf = table_levels == 1
    fine = (pfns < x86.MAX_PFN).all() and len(np.unique(pfns)) == len(pfns)
    fine &= ((table_levels >= 1) & (table_levels <= levels)).all()
    for pool, chosen in ((leaf, is_leaf), (upper, ~is_leaf)):
        fine &= np.array_equal(np.sort(rows[chosen]), np.arange(len(pool), dtype=np.uint64))
    if not fine:
        raise ValueError("where must name every table once, with a PFN below 2^40 and its level and row")
    upper_levels = np.zeros(len(upper), dtype=np.uint64)
    upper_levels[rows[~is_leaf].astype(np.intp)] = table_levels[~is_leaf]
    upper_pfns = np.zeros(len(upper), dtype=np.uint64)
    upper_pfns[rows[~is_leaf].astype(np.intp)] = pfns[~is_leaf]
    leaf_pfns = np.zeros(len(leaf), dtype=np.uint64)
    leaf_pfns[rows[is_leaf].astype(np.intp)] = pfns[is_leaf]
    for level in range(2, levels + 1):
        of_level = np.flatnonzero(upper_levels == level)
        place, slots = np.nonzero(child[of_level] != NO_CHILD)
        row = child[of_level[place], slots]
        pool_pfns = leaf_pfns if level == 2 else upper_pfns
        fine = ((row >= 0) & (row < len(pool_pfns))).all()
        if fine and level > 2:
            fine = (upper_levels[row] == level - 1).all()
        if fine:
            wanted = (upper[of_level[place], slots] & x86.PTE_PFN_MASK) >> x86.PAGE_SHIFT
            fine = np.array_equal(pool_pfns[row], wanted)
        if not fine:
            raise ValueError(f"a child of level {level} must be the table that its entry points to")


def points_to_table(value: int, level: int) -> bool:
    """True for an upper entry that is present and not huge, so that a table stands behind it."""
    return bool(value & int(x86.PAGE_PRESENT)) and not _huge(value, level)


def _huge(value: int, level: int) -> bool:
    """True for a leaf of level 2 or 3; levels 4 and 5 have none."""
    return level <= 3 and bool(value & int(x86.PAGE_PSE | x86.PAGE_DEVMAP))


def _is_bad(value: int, level: int, levels: int, pmd_bad_ignores: int) -> bool:
    entry = U64(value)
    if level == 2:
        return bool(x86.pmd_bad(entry, U64(pmd_bad_ignores)))
    if level == 3:
        return False  # the walk never asks pud_bad
    return bool(x86.pgd_bad(entry) if level == 5 and levels == 5 else x86.p4d_bad(entry))


def _grown(pool: npt.NDArray[Entry], needed: int, fill: int) -> npt.NDArray[Entry]:
    shape = (max(needed, 2 * len(pool)), 512)
    grown = np.zeros(shape, dtype=pool.dtype) if not fill else np.full(shape, fill, dtype=pool.dtype)
    grown[: len(pool)] = pool
    return grown
