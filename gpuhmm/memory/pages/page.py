"""What Linux keeps in ``struct page``, by PFN, in flat arrays.

Memory is cut into sections of 2^15 frames, as x86-64's sparse memory map is; a section's arrays exist
from the first frame of it that is looked at, so that any PFNs may be used.

Source: include/linux/mm_types.h:struct page, arch/x86/include/asm/sparsemem.h (v6.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SECTION_SHIFT = 15
SECTION_PAGES = 1 << SECTION_SHIFT
SECTION_MASK = SECTION_PAGES - 1

#: The page belongs to private memory of a process (PageAnon).
PG_ANON = 1 << 0
#: Only one page table maps it: a write fault need not copy (PageAnonExclusive).
PG_ANON_EXCLUSIVE = 1 << 1
#: It is in the swap cache, under the slot that ``index`` does not tell but the swap device does.
PG_SWAPCACHE = 1 << 2
#: Merged by KSM: never reused (PageKsm).
PG_KSM = 1 << 3
PG_HWPOISON = 1 << 4
PG_HUGETLB = 1 << 5
#: It is in the page cache of the file that ``mapping`` names.
PG_FILE = 1 << 6
#: A page-table page.
PG_TABLE = 1 << 7
#: Nobody allocated it here: it came with given page tables, so that its counts are an assumption.
PG_ADOPTED = 1 << 8
#: Device memory, private or coherent.
PG_DEVICE = 1 << 9
#: The contents may be dropped instead of swapped (MADV_FREE).
PG_LAZYFREE = 1 << 10

#: One pin of a page counts that much in ``refcount`` (GUP_PIN_COUNTING_BIAS).
GUP_PIN_COUNTING_BIAS = 1024

_FIELDS = (
    ("content", np.uint64),
    ("index", np.uint64),
    ("refcount", np.int32),
    ("mapcount", np.int32),
    ("mapping", np.uint32),
    ("flags", np.uint16),
    ("order", np.uint8),
)


class Section:
    """The descriptors of 2^15 frames, one array a field.

    ``refcount`` int32, of a compound page in its head; ``mapcount`` int32, the page-table entries that
    map exactly this page; ``flags`` uint16, PG_*; ``order`` uint8, log2 of the pages of the compound page
    that it is part of; ``mapping`` uint32, the number of its file; ``index`` uint64, its page in the file
    or in the address space; ``content`` uint64, the last word stored there.
    """

    __slots__ = ("content", "flags", "index", "mapcount", "mapping", "order", "refcount")

    content: npt.NDArray[np.uint64]
    index: npt.NDArray[np.uint64]
    refcount: npt.NDArray[np.int32]
    mapcount: npt.NDArray[np.int32]
    mapping: npt.NDArray[np.uint32]
    flags: npt.NDArray[np.uint16]
    order: npt.NDArray[np.uint8]

    def __init__(self, fields: dict[str, npt.NDArray[Any]]) -> None:
        for name, array in fields.items():
            setattr(self, name, array)


@dataclass(frozen=True)
class Page:
    """One descriptor, read out: see :class:`Section`."""

    pfn: int
    refcount: int
    mapcount: int
    flags: int
    order: int
    mapping: int
    index: int
    content: int


class PageDescriptors:
    """The descriptors of a machine's memory.  Frames that nobody looked at have none of any field."""

    def __init__(self) -> None:
        self.sections: dict[int, Section] = {}

    def section(self, pfn: int) -> Section:
        """Return the section of ``pfn``, made if need be."""
        found = self.sections.get(pfn >> SECTION_SHIFT)
        if found is None:
            self.reserve(pfn, 1)
            found = self.sections[pfn >> SECTION_SHIFT]
        return found

    def reserve(self, pfn: int, count: int) -> None:
        """Make the sections of ``[pfn, pfn + count)`` that are missing, in one piece."""
        keys = range(pfn >> SECTION_SHIFT, ((pfn + count - 1) >> SECTION_SHIFT) + 1)
        missing = [key for key in keys if key not in self.sections]
        if not missing:
            return
        arrays = {name: np.zeros((len(missing), SECTION_PAGES), dtype=dtype) for name, dtype in _FIELDS}
        for i, key in enumerate(missing):
            self.sections[key] = Section({name: array[i] for name, array in arrays.items()})

    def page(self, pfn: int) -> Page:
        """Return the descriptor of ``pfn``, a copy."""
        section, i = self.section(pfn), pfn & SECTION_MASK
        return Page(
            pfn=pfn,
            refcount=int(section.refcount[i]),
            mapcount=int(section.mapcount[i]),
            flags=int(section.flags[i]),
            order=int(section.order[i]),
            mapping=int(section.mapping[i]),
            index=int(section.index[i]),
            content=int(section.content[i]),
        )

    def head(self, pfn: int) -> int:
        """Return the first PFN of the compound page that ``pfn`` is part of, else ``pfn``."""
        order = int(self.section(pfn).order[pfn & SECTION_MASK])
        return pfn >> order << order

    def flags(self, pfn: int) -> int:
        """Return PG_* bits."""
        return int(self.section(pfn).flags[pfn & SECTION_MASK])

    def set_flags(self, pfn: int, add: int, drop: int = 0) -> None:
        """Set ``add`` and clear ``drop``, PG_* bits, of one page."""
        section, i = self.section(pfn), pfn & SECTION_MASK
        section.flags[i] = (int(section.flags[i]) & ~drop) | add

    def refcount(self, pfn: int) -> int:
        """Return the references to the compound page of ``pfn``."""
        head = self.head(pfn)
        return int(self.section(head).refcount[head & SECTION_MASK])

    def get(self, pfn: int, count: int = 1) -> int:
        """Add ``count`` references to the compound page of ``pfn``, negative to drop; return the sum."""
        head = self.head(pfn)
        section, i = self.section(head), head & SECTION_MASK
        total = int(section.refcount[i]) + count
        if total < 0:
            raise ValueError(f"page {pfn:#x} must not have fewer than no references (got {total})")
        section.refcount[i] = total
        return total

    def mapcount(self, pfn: int) -> int:
        """Return how many entries map exactly this page."""
        return int(self.section(pfn).mapcount[pfn & SECTION_MASK])

    def add_mapcount(self, pfn: int, count: int) -> int:
        """Change how many entries map exactly this page; return the sum."""
        section, i = self.section(pfn), pfn & SECTION_MASK
        section.mapcount[i] += count
        return int(section.mapcount[i])

    def content(self, pfn: int) -> int:
        """Return the word that was stored in the page last."""
        return int(self.section(pfn).content[pfn & SECTION_MASK])

    def set_content(self, pfn: int, value: int) -> None:
        """Store a word, below 2^64, in the page."""
        self.section(pfn).content[pfn & SECTION_MASK] = value

    def set_place(self, pfn: int, mapping: int, index: int) -> None:
        """Say in which file (0: none) and at which page of it, or of the address space, the page is."""
        section, i = self.section(pfn), pfn & SECTION_MASK
        section.mapping[i] = mapping
        section.index[i] = index

    def runs(self, pfn: int, count: int) -> Iterator[tuple[Section, slice]]:
        """Yield the sections of ``[pfn, pfn + count)`` and the slice of each."""
        while count:
            first = pfn & SECTION_MASK
            here = min(count, SECTION_PAGES - first)
            yield self.section(pfn), slice(first, first + here)
            pfn, count = pfn + here, count - here

    def fill(self, pfn: int, count: int, **fields: Any) -> None:
        """Set fields of ``[pfn, pfn + count)``, each to one number."""
        for section, where in self.runs(pfn, count):
            for name, value in fields.items():
                getattr(section, name)[where] = value

    def split(self, pfn: int) -> None:
        """Turn a compound page into single pages, each with what the head had (split_huge_page).

        The references of the head are those of all its pages: whoever maps a page holds one of its own.
        """
        head = self.head(pfn)
        count = 1 << self.page(head).order
        for section, where in self.runs(head, count):
            section.refcount[where] = section.mapcount[where]
            section.order[where] = 0
