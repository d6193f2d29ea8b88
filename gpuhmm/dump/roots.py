"""Top tables of Linux in an image, for who does not know CR3: found by what every one of them holds.

The rule.  A page is a candidate if

1. each of its entries that is not 0 is present and has PSE clear (reserved at that level);
2. the kernel's text is mapped where Linux maps it, at 0xffffffff80000000: entry 511, with five levels
   entry 511 of the table behind it as well, leads to a table whose entry 510 leads to a table with at
   least one present entry.

Where entries point is not asked: a truncated image lacks tables that every process shares.  A top table of
five levels follows the rule for four as well (the table behind it has the espfix area in entry 510), and so
does the table behind its entry 511; none of four follows that for five (the fixmap's table has no entry 510).

Source: Documentation/arch/x86/x86_64/mm.rst (v6.1); pti.rst beside it for the pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.image import MemorySource, as_source
from gpuhmm.mm.tables import Words
from gpuhmm.mm.x86 import PAGE_PRESENT, PAGE_PSE, PTE_PFN_MASK, U64

#: One candidate: CR3, levels, entries of the top table in the user and the kernel half, and the CR3 of
#: the other half of its pair, 0 without one: with page-table isolation a process has two top tables, side by
#: side, that of user mode the higher one.
ROOT_DTYPE = np.dtype(
    [
        ("cr3", np.uint64),
        ("levels", np.uint8),
        ("user", np.uint16),
        ("kernel", np.uint16),
        ("pair", np.uint64),
    ]
)

#: The bit of CR3 in which the tables of a pair differ (arch/x86/mm/pti.c: PTI_USER_PGTABLE_BIT, v6.1).
_PTI_USER_BIT = U64(1 << 12)

_TABLE = PAGE_PRESENT | PAGE_PSE
_TEXT_SLOT = 510
_LAST_SLOT = 511


def find_roots(source: Any, *, levels: int | None = None) -> npt.NDArray[np.void]:
    """Return every candidate for CR3 in an image, ``ROOT_DTYPE``[n], by address.

    ``source`` is a path or physical memory that can be scanned, ``levels`` 4 or 5 where that is known,
    else what the image says, else both are tried.  Candidates with ``user`` 0 belong to the kernel
    alone.  The image is read once, up to 16 MiB at a time.
    """
    memory = as_source(source)
    wanted = levels or memory.levels
    if wanted not in (None, 4, 5):
        raise ValueError(f"levels must be 4 or 5 (got {wanted})")
    found = {}
    behind = set()  # tables that would be top tables of four levels, and are not
    for first, pages in memory.scan():
        likely = np.flatnonzero((pages[:, _LAST_SLOT] & _TABLE) == PAGE_PRESENT)
        tables = pages[likely]
        fine = (((tables & _TABLE) == PAGE_PRESENT) | (tables == 0)).all(axis=1)
        likely, tables = likely[fine], tables[fine]
        for tried in (4, 5) if wanted is None else (wanted,):
            for row in np.flatnonzero(_map_text(memory, tables, tried)).tolist():
                cr3 = first + int(likely[row]) << 12
                used = tables[row] != 0
                found[cr3] = (cr3, tried, int(used[:256].sum()), int(used[256:].sum()), 0)
                if tried == 5:
                    behind.add(int(_targets(memory, tables[row, _LAST_SLOT])) << 12)
    kept = [root for cr3, root in sorted(found.items()) if root[1] == 5 or cr3 not in behind]
    roots = np.array(kept, dtype=ROOT_DTYPE)
    _mark_pairs(memory, roots)
    return roots


def paging_levels(memory: MemorySource, root: Words) -> int | None:
    """Return with how many levels, 5 or 4, the top table ``root``, uint64[512], maps the kernel's text.

    None where it does with neither.
    """
    for tried in (5, 4):
        if _map_text(memory, root[None], tried)[0]:
            return tried
    return None


def _map_text(memory: MemorySource, tables: Words, levels: int) -> npt.NDArray[np.bool_]:
    """Return for which top tables, uint64[n, 512], rule 2 holds: bool[n]."""
    count = len(tables)
    rows = np.arange(count)
    for slot in (_LAST_SLOT,) * (levels - 3) + (_TEXT_SLOT,):
        entries = tables[:, slot]
        leads = (entries & _TABLE) == PAGE_PRESENT
        pages, there = memory.read_pages(_targets(memory, entries[leads]))
        rows, tables = rows[leads][there], pages[there]
    fine = np.zeros(count, dtype=np.bool_)
    fine[rows] = (tables & PAGE_PRESENT).any(axis=1)
    return fine


def _targets(memory: MemorySource, entries: Words) -> Words:
    """Return the PFNs that entries point to."""
    return (entries & PTE_PFN_MASK & ~U64(memory.sme_mask)) >> U64(12)


def _mark_pairs(memory: MemorySource, roots: npt.NDArray[np.void]) -> None:
    """Fill in ``pair``: neighbours whose user halves point to the same tables (the kernel's one adds NX)."""
    lower = np.flatnonzero(((roots["cr3"] & _PTI_USER_BIT) == 0) & (roots["user"] > 0))
    lower = lower[np.isin(roots["cr3"][lower] | _PTI_USER_BIT, roots["cr3"])]
    upper = lower + 1  # by address nothing lies between
    halves = [memory.read_pages(roots["cr3"][rows] >> U64(12))[0][:, :256] for rows in (lower, upper)]
    same = (((halves[0] ^ halves[1]) & PTE_PFN_MASK) == 0).all(axis=1)
    roots["pair"][lower[same]] = roots["cr3"][upper[same]]
    roots["pair"][upper[same]] = roots["cr3"][lower[same]]
