"""An AddressSpace out of raw tables: the tree that Linux's walk expects, and VMAs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gpuhmm.dump.areas import areas_of
from gpuhmm.dump.raw_tables import FAULT_MISSING, RawTables
from gpuhmm.image import MemorySource
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.entry import TABLE, encode_swap
from gpuhmm.mm.profile import NO_TYPE, KernelProfile, kernel_profile
from gpuhmm.mm.running_kernel import ASSUMED
from gpuhmm.mm.tables import NO_CHILD, Words
from gpuhmm.mm.vma import Vma
from gpuhmm.mm.x86 import MAX_PFN, NO_PFN, PAGE_PRESENT, PAGE_PROTNONE, PTE_PFN_MASK, U64, ZERO_PFN

#: What is said where no VMAs were given.
AREAS_RULE = (
    "no VMAs were given: every stretch of entries that are not none counts as one area, readable, writable "
    "if any of its entries is, executable if any is; PROTNONE stretches are areas without access, and "
    "1 GiB pages count as hugetlb"
)


@dataclass(frozen=True)
class DumpSpace:
    """An address space and how it came about.

    ``unknown`` counts the upper entries behind which every page reads as ERROR, because their table
    is missing from the image or is used at two levels.  ``derived`` is true where the VMAs were worked
    out from the entries.
    """

    space: AddressSpace
    unknown: int
    derived: bool
    notes: list[str]


def address_space(
    tables: RawTables,
    vmas: Iterable[Vma] | None = None,
    *,
    kernel: str | KernelProfile = ASSUMED,
    zero_pfn: int = ZERO_PFN,
    huge_zero_pfn: int = NO_PFN,
    highest_memmap_pfn: int = MAX_PFN - 1,
    device_private: Iterable[tuple[int, int, int]] = (),
) -> DumpSpace:
    """Return the address space of ``tables`` with ``vmas``, or with areas worked out from the entries.

    The other arguments are those of :meth:`gpuhmm.AddressSpace.from_tables`.  Where a table cannot be
    followed, Linux would read memory that we do not have: all pages behind it read as ERROR, and a
    request for them fails with -EFAULT.  ValueError for VMAs that overlap or exceed the levels.
    """
    profile = kernel_profile(kernel)
    pfns, pages, unknown = _tree(tables, profile)
    space = AddressSpace.from_tables(
        levels=tables.levels,
        root_pfn=tables.root_pfn,
        table_pfns=pfns,
        tables=pages,
        vmas=areas_of(tables) if vmas is None else vmas,
        kernel=profile,
        zero_pfn=zero_pfn,
        huge_zero_pfn=huge_zero_pfn,
        highest_memmap_pfn=highest_memmap_pfn,
        device_private=device_private,
    )
    notes = [AREAS_RULE] if vmas is None else []
    if unknown:
        notes.append(f"{unknown} upper entries lead to tables that are missing: what lies behind is ERROR")
    return DumpSpace(space, unknown, vmas is None, notes)


def _tree(tables: RawTables, profile: KernelProfile) -> tuple[Words, Words, int]:
    """Return PFNs and pages in which every table has one level, and how many entries were replaced."""
    upper = tables.upper.copy()
    every = np.concatenate((tables.upper_pfns, tables.leaf_pfns))
    # Rows go from the top level down: the first row of a PFN is that of its highest level.
    pfns, first = np.unique(every, return_index=True)
    levels = np.concatenate((tables.upper_levels, np.ones(len(tables.leaf), dtype=np.uint8)))
    unknown = 0
    made = _Unknown(pfns, profile)
    for level in range(tables.levels, 1, -1):
        rows = np.flatnonzero(tables.upper_levels == level)
        rows = rows[np.isin(rows, first)]  # of a table at two levels only the first row is kept
        child = tables.child[rows]
        place, slots = np.nonzero(child != NO_CHILD)
        child_row = child[place, slots].astype(np.intp) + (len(upper) if level == 2 else 0)
        home = levels[first[np.searchsorted(pfns, every[child_row])]]
        wrong = home != level - 1
        faults = tables.faults
        missing = faults[(faults["kind"] == FAULT_MISSING) & np.isin(faults["row"], rows)]
        at_rows = np.concatenate((rows[place[wrong]], missing["row"].astype(np.intp)))
        at_slots = np.concatenate((slots[wrong], missing["slot"].astype(np.intp)))
        unknown += len(at_rows)
        if len(at_rows):
            upper[at_rows, at_slots] = made.entry(level)
    pages = np.concatenate((upper, tables.leaf))[first]
    more_pfns, more_pages = made.tables()
    return np.concatenate((pfns, more_pfns)), np.concatenate((pages, more_pages)), unknown


class _Unknown:
    """Tables that stand for unknown ones: whatever is looked up in them is an entry that gives ERROR."""

    def __init__(self, taken: Words, profile: KernelProfile) -> None:
        # A poisoned PMD gives ERROR, and no valid page even where a hugetlb area looks at it.
        # Without that type a swapped PMD does it as well.
        self._poison = encode_swap(0 if profile.swp_hwpoison == NO_TYPE else profile.swp_hwpoison, 0)
        self._free = (pfn for pfn in range(MAX_PFN - 1, 0, -1) if not _holds(taken, pfn))
        self._pfns: dict[int, int] = {}  # level -> PFN of the table whose entries are all unknown

    def entry(self, level: int) -> int:
        """Return an entry of ``level`` behind which everything is unknown."""
        if level == 2:
            return self._poison
        if level - 1 not in self._pfns:
            self._pfns[level - 1] = next(self._free)
        return self._pfns[level - 1] << 12 | TABLE

    def tables(self) -> tuple[Words, Words]:
        """Return the tables that the entries need."""
        for level in range(max(self._pfns, default=0), 2, -1):
            self.entry(level)
        pages = np.empty((len(self._pfns), 512), dtype=np.uint64)
        for i, level in enumerate(self._pfns):
            pages[i] = self.entry(level)
        return np.array(list(self._pfns.values()), dtype=np.uint64), pages


def _holds(ascending: Words, pfn: int) -> bool:
    at = int(np.searchsorted(ascending, U64(pfn)))
    return at < len(ascending) and int(ascending[at]) == pfn


def leaves_outside(tables: RawTables, memory: MemorySource) -> tuple[int, int]:
    """Return how many 4 KiB entries map memory that is not there: present ones, and PROT_NONE ones.

    Of the latter those count whose PFN lies in ``memory`` if it is not inverted, and only then.
    """
    outside = upright = 0
    for at in range(0, len(tables.leaf), 4096):
        entries = tables.leaf[at : at + 4096]
        known = memory.contains(entries[(entries & PAGE_PRESENT) != 0] & PTE_PFN_MASK)
        no_access = entries[(entries & (PAGE_PRESENT | PAGE_PROTNONE)) == PAGE_PROTNONE] & PTE_PFN_MASK
        as_it_is, inverted = memory.contains(no_access), memory.contains(no_access ^ PTE_PFN_MASK)
        if known is None or as_it_is is None or inverted is None:
            return 0, 0
        outside += int((~known).sum())
        upright += int((as_it_is & ~inverted).sum())
    return outside, upright
