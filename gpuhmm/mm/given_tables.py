"""Page tables that exist already: of a process, of a dump, of a snapshot, of a recorded call.

Given are their pages, in any order and with more among them than a walk can reach, or the arrays of
:class:`gpuhmm.mm.tables.PageTables` as they were.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from gpuhmm.mm import x86
from gpuhmm.mm.arguments import check_array, check_pfn
from gpuhmm.mm.entry import is_leaf, points_to_table, table_pfn
from gpuhmm.mm.profile import KernelProfile
from gpuhmm.mm.tables import NO_CHILD, PageTables, Words
from gpuhmm.mm.x86 import U64, level_shift


def tables_of_pages(
    levels: int, root_pfn: int, table_pfns: Words, tables: Words, kernel: KernelProfile
) -> PageTables:
    """Return the tables that these pages are, whatever their order; they are copied.

    ``table_pfns`` is uint64[n], ``tables`` uint64[n, 512].  ValueError, with level and address,
    for a PFN that comes twice, a missing root, an entry that points to a missing table, a cycle
    and a table used at two levels.
    """
    check_array("table_pfns", table_pfns, (None,))
    check_array("tables", tables, (len(table_pfns), 512))
    made = PageTables(levels, root_pfn, kernel)
    for pfn, page in zip(table_pfns.tolist(), tables, strict=True):
        check_pfn("a table PFN", pfn)
        if pfn in made.unreached:
            raise ValueError(f"table_pfns must be distinct (got {pfn:#x} twice)")
        made.unreached[pfn] = page
    if root_pfn not in made.unreached:
        raise ValueError(f"root_pfn must be one of table_pfns (got {root_pfn:#x})")
    made.reserve(leaf=len(table_pfns))
    made.upper[0] = made.unreached.pop(root_pfn)
    optional = list(_attach_all(made))
    for level, row, slot in optional:  # what only hugetlb areas follow, once the rest is known
        value = int(made.upper[row, slot])
        pfn = table_pfn(value)
        if pfn in made.unreached or made.where.get(pfn, (0, 0))[0] == level - 1:
            made.child[row, slot] = made.child_of(value, level)
    made.unreached = {pfn: page.copy() for pfn, page in made.unreached.items()}
    return made


def _attach_all(made: PageTables) -> Iterator[tuple[int, int, int]]:
    """Give every table that a walk can reach its row; yield the entries that walks only may follow."""
    huge_bits = made.kernel.huge_bits
    rows = [(0, 0)]  # row of a table of this level, and the first address that it covers
    for level in range(made.levels, 1, -1):
        below = []
        for row, base in rows:
            page = made.upper[row]
            for slot in np.flatnonzero(page).tolist():
                value = int(page[slot])
                va = base + (slot << level_shift(level))
                if not points_to_table(value, level, huge_bits):
                    if level >= 3 and not is_leaf(value, level, huge_bits):
                        yield level, row, slot
                    continue
                if _is_bad(value, level, made):
                    yield level, row, slot
                    continue
                known = made.where.get(table_pfn(value))
                child = (
                    _attach(made, value, level, va) if known is None else _attached(known, value, level, va)
                )
                made.child[row, slot] = child
                if known is None:
                    below.append((child, va))
        rows = below


def _attach(made: PageTables, value: int, level: int, va: int) -> int:
    """Give the table behind an entry a row."""
    pfn = table_pfn(value)
    if pfn not in made.unreached:
        raise ValueError(
            f"the level {level} entry of va {va:#x} points to table PFN {pfn:#x}, which is missing"
        )
    return made.add_table(pfn, level - 1)


def _attached(known: tuple[int, int], value: int, level: int, va: int) -> int:
    """Return the row of a table that another entry points to already."""
    if known[0] != level - 1:
        kind = "a cycle" if known[0] >= level else "a table at two levels"
        raise ValueError(
            f"page tables must form a tree: {kind}, the level {level} entry of va {va:#x} points to "
            f"table PFN {table_pfn(value):#x}, which is used at level {known[0]}"
        )
    return known[1]


def _is_bad(value: int, level: int, made: PageTables) -> bool:
    entry = U64(value)
    if level == 2:
        return bool(x86.pmd_bad(entry, U64(made.kernel.pmd_bad_ignores)))
    if level == 3:
        return False  # the walk never asks pud_bad
    return bool(x86.pgd_bad(entry) if level == 5 and made.levels == 5 else x86.p4d_bad(entry))


def tables_in_pools(
    levels: int,
    kernel: KernelProfile,
    *,
    upper: Words,
    child: npt.NDArray[np.int32],
    leaf: Words,
    where: Words,
    unreached: dict[int, Words],
) -> PageTables:
    """Return tables made of the arrays themselves, which are not copied and must be writable.

    They are those of :attr:`PageTables.upper`, ``child`` and ``leaf``; ``where`` is uint64[n, 3], the PFN,
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
    made = PageTables(levels, int(where[0, 0]), kernel)
    made.take_pools(upper, child, leaf, {pfn: (level, row) for pfn, level, row in where.tolist()})
    made.unreached = unreached
    return made


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
