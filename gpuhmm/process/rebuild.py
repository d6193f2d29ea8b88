"""Page tables of all levels, built from the windows of 2 MiB that hold anything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuhmm.mm import x86
from gpuhmm.mm.profile import KernelProfile
from gpuhmm.process.entries import huge_entries, page_entries
from gpuhmm.process.pagemap import PM_PRESENT, Words

Indexes = npt.NDArray[np.int64]

#: PFNs of the tables themselves, which pagemap does not show: from here on, far above real memory.
FIRST_TABLE_PFN = 1 << 39

#: Windows that are worked on at once, so that what lies between two steps stays in the cache.
_CHUNK = 64


@dataclass(frozen=True)
class RebuiltTables:
    """What :meth:`gpuhmm.AddressSpace.from_tables` takes."""

    levels: int
    root_pfn: int
    table_pfns: Words
    tables: Words


def rebuild(
    levels: int,
    windows: Indexes,
    words: Words,
    classes: npt.NDArray[np.uint8],
    huge: npt.NDArray[np.bool_],
    hugetlb: npt.NDArray[np.uint8],
    kernel: KernelProfile,
) -> RebuiltTables:
    """Return the tables of what pagemap showed.

    ``windows`` is int64[n], ascending, the address of each in units of 2 MiB; ``words`` and ``classes``
    are [n, 512], see :func:`gpuhmm.process.entries.page_entries`; ``huge`` is bool[n], true where one
    PMD maps the window; ``hugetlb`` uint8[n] is 21 or 30 in hugetlb areas, else 0.  ``kernel`` is the one
    that wrote the words.  ``words`` is overwritten.
    """
    found_2m = np.flatnonzero(huge | (hugetlb == 21))
    mask = np.where(hugetlb[found_2m, None] == 21, x86.PTE_PFN_MASK, x86.PMD_PFN_MASK)[:, 0]
    leaves_2m = np.zeros(len(found_2m), dtype=np.uint64)
    for pfn_mask in (x86.PMD_PFN_MASK, x86.PTE_PFN_MASK):
        chosen = np.flatnonzero(mask == pfn_mask)
        leaves_2m[chosen] = _leaves(words, classes, found_2m[chosen], kernel, pfn_mask)
    found_1g, leaves_1g = _gigantic(windows, words, classes, hugetlb, kernel)

    small = ~huge & (hugetlb == 0)
    for first in range(0, len(windows), _CHUNK):
        part = slice(first, first + _CHUNK)
        words[part] = page_entries(words[part], classes[part], kernel)
    small &= words.any(axis=1)
    leaf_rows = np.flatnonzero(small)

    made = _Tables(len(leaf_rows))
    made.pages.append(words if len(leaf_rows) == len(words) else words[leaf_rows])
    below = np.concatenate((windows[leaf_rows], windows[found_2m]))
    entries = np.concatenate((made.pointers(len(leaf_rows)), leaves_2m))
    for level in range(2, levels + 1):
        if level == 3:
            below = np.concatenate((below, found_1g))
            entries = np.concatenate((entries, leaves_1g))
        below, entries = made.level(below, entries, root=level == levels)
    root = made.count - 1
    pfns = np.arange(FIRST_TABLE_PFN, FIRST_TABLE_PFN + made.count, dtype=np.uint64)
    return RebuiltTables(levels, FIRST_TABLE_PFN + root, pfns, np.concatenate(made.pages))


class _Tables:
    """Pages of tables in the order of their PFNs."""

    def __init__(self, leaves: int) -> None:
        self.pages: list[Words] = []
        self.count = leaves

    def pointers(self, tables: int) -> Words:
        """Return the entries that point to the last ``tables`` tables."""
        last = FIRST_TABLE_PFN + self.count
        pfns = np.arange(last - tables, last, dtype=np.uint64)
        return pfns << x86.PAGE_SHIFT | x86.PAGE_TABLE

    def level(self, below: Indexes, entries: Words, root: bool) -> tuple[Indexes, Words]:
        """Add the tables that hold ``entries``, whose addresses are ``below`` in units of one entry."""
        number = np.unique(below >> 9) if not root else np.zeros(1, dtype=np.int64)
        pages = np.zeros((len(number), 512), dtype=np.uint64)
        pages[np.searchsorted(number, below >> 9), below & 511] = entries
        self.pages.append(pages)
        self.count += len(number)
        return number, self.pointers(len(number))


def _leaves(
    words: Words,
    classes: npt.NDArray[np.uint8],
    rows: Indexes,
    kernel: KernelProfile,
    pfn_mask: np.uint64,
) -> Words:
    """Return the 2 MiB leaves of those rows; pages that are not present make no leaf."""
    leaves = np.zeros(len(rows), dtype=np.uint64)
    for first in range(0, len(rows), _CHUNK):
        part = rows[first : first + _CHUNK]
        made = huge_entries(words[part], classes[part], kernel, pfn_mask)
        leaves[first : first + _CHUNK] = np.where((words[part, 0] & PM_PRESENT) != 0, made, x86.ZERO)
    return leaves


def _gigantic(
    windows: Indexes,
    words: Words,
    classes: npt.NDArray[np.uint8],
    hugetlb: npt.NDArray[np.uint8],
    kernel: KernelProfile,
) -> tuple[Indexes, Words]:
    """Return the 1 GiB leaves of hugetlb areas: their addresses in GiB, and the entries."""
    rows = np.flatnonzero((hugetlb == 30) & ((words[:, 0] & PM_PRESENT) != 0))
    found, first = np.unique(windows[rows] >> 9, return_index=True)
    rows = rows[first]
    inside = (windows[rows] & 511).astype(np.uint64) << np.uint64(9)  # windows below were not read, perhaps
    heads = words[rows]
    heads[:, 0] -= inside
    return found, huge_entries(heads, classes[rows], kernel, x86.PTE_PFN_MASK)
