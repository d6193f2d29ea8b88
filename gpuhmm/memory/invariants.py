"""What must always hold of a machine's memory and the page tables over it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.memory.pages.page import (
    GUP_PIN_COUNTING_BIAS,
    PG_ADOPTED,
    PG_ANON,
    PG_ANON_EXCLUSIVE,
    PG_DEVICE,
    PG_FILE,
    PG_HUGETLB,
    PG_HWPOISON,
    PG_SWAPCACHE,
    PG_TABLE,
    SECTION_SHIFT,
)
from gpuhmm.memory.pages.rmap import is_dax_page
from gpuhmm.memory.pages.swapfile import slot_of
from gpuhmm.mm.entry import (
    NONE,
    PMD_SIZE,
    PROTNONE,
    PSE,
    SPECIAL,
    P,
    huge_pfn_of,
    pfn_of,
    swp_offset,
    swp_pfn,
    swp_type_of,
    table_pfn,
)
from gpuhmm.mm.tables import NO_CHILD
from gpuhmm.mm.vma import Vma
from gpuhmm.mm.x86 import level_shift

if TYPE_CHECKING:
    from gpuhmm.memory.pages.physical import PhysicalMemory
    from gpuhmm.memory.space import AddressSpace


def check_invariants(memory: PhysicalMemory) -> None:
    """AssertionError with the first thing that is wrong; None if all is well.

    Every table is reached exactly once; every page is counted as often as entries, the page cache, the
    swap cache and migrations hold it; an exclusive page has one entry; swap slots are named as often as
    they say; no frame is free and in use.
    """
    counts = _Counts()
    for mm in memory.spaces:
        _check_tables(memory, mm)
        for vma in mm.vmas:
            _count_area(mm, vma, counts)
    for file in memory.files:
        if not file.kind.dax:
            for _, pfn in file.cached():
                counts.cache[memory.pages.head(pfn) if file.kind.hugetlb else pfn] += 1
            if file.kind.hugetlb:
                _hugetlb_cache_once(memory, counts)
    for migration in memory.migrations:
        for old, new in migration.destinations.items():
            counts.held[old] += 1
            counts.held[new] += 1
    _check_pages(memory, counts)
    _check_swap(memory, counts)


class _Counts:
    def __init__(self) -> None:
        self.entries: Counter[int] = Counter()  # entries that map exactly this page
        self.references: Counter[int] = Counter()  # entries by head of the page
        self.cache: Counter[int] = Counter()
        self.held: Counter[int] = Counter()
        self.slots: Counter[int] = Counter()


def _hugetlb_cache_once(memory: PhysicalMemory, counts: _Counts) -> None:
    for head in list(counts.cache):
        if memory.pages.flags(head) & PG_HUGETLB:
            counts.cache[head] = 1


def _check_tables(memory: PhysicalMemory, mm: AddressSpace) -> None:
    """Every table that is known is reached from the root once, and its entries' rows are the right ones."""
    tables = mm.page_tables
    reached: Counter[tuple[int, int]] = Counter()
    rows = [0]
    for level in range(mm.levels, 1, -1):
        below = []
        for row in rows:
            for slot in np.flatnonzero(tables.child[row] != NO_CHILD).tolist():
                child = int(tables.child[row, slot])
                pfn = table_pfn(int(tables.upper[row, slot]))
                assert tables.where.get(pfn) == (level - 1, child), (
                    f"the level {level} entry {int(tables.upper[row, slot]):#x} must lead to its table"
                )
                reached[level - 1, child] += 1
                below.append(child)
        rows = below
    twice = [key for key, count in reached.items() if count > 1]
    assert not twice, f"a table must be reached once (level and row {twice[:1]} is reached more often)"
    lost = [
        pfn for pfn, (level, row) in tables.where.items() if level < mm.levels and not reached[level, row]
    ]
    assert not lost, f"every table must be reached (PFN {lost[0]:#x} is not)" if lost else ""
    for pfn in tables.where:
        if memory.pages.flags(pfn) & PG_TABLE:
            assert memory.pages.refcount(pfn) == 1, f"a table must have one reference (PFN {pfn:#x} has not)"


def _count_area(mm: AddressSpace, vma: Vma, counts: _Counts) -> None:
    va = vma.start
    while va < vma.end:
        level = mm.page_tables.lowest(va)
        step = 1 << level_shift(level)
        if level == 1:
            past = min((va & -PMD_SIZE) + PMD_SIZE, vma.end)
            row, first = mm.page_tables.row(va, 1), va >> 12 & 511
            entries = mm.page_tables.leaf[row, first : first + ((past - va) >> 12)]
            for i in np.flatnonzero(entries).tolist():
                _count_pte(mm, vma, va + (i << 12), int(entries[i]), counts)
            va = past
            continue
        entry = mm.entry(va, level)
        if entry & ~NONE and level <= 3:
            _count_huge(mm, vma, va & -step, entry, counts)
        va = (va & -step) + step


def _count_pte(mm: AddressSpace, vma: Vma, va: int, pte: int, counts: _Counts) -> None:
    if not pte & ~NONE:
        return
    pages, kernel = mm.memory.pages, mm.kernel
    if pte & (P | PROTNONE):
        pfn = pfn_of(pte)
        if not pte & SPECIAL and pfn != mm.zero_pfn and not is_dax_page(mm, vma, va, pte, pfn):
            counts.entries[pfn] += 1
            counts.references[pages.head(pfn)] += 1
        return
    swp_type = swp_type_of(pte)
    if swp_type < kernel.max_swapfiles:
        counts.slots[slot_of(swp_type, swp_offset(pte))] += 1
    elif swp_type in (
        kernel.swp_device_write,
        kernel.swp_device_read,
        kernel.swp_device_exclusive_write,
        kernel.swp_device_exclusive_read,
    ):
        pfn = swp_pfn(mm, pte)
        counts.entries[pfn] += 1
        counts.references[pages.head(pfn)] += 1


def _count_huge(mm: AddressSpace, vma: Vma, va: int, entry: int, counts: _Counts) -> None:
    if not entry & (P | PROTNONE) or not entry & PSE:
        return
    pages = mm.memory.pages
    if vma.is_hugetlb:
        order = vma.page_shift - 12
        pfn = pfn_of(entry) >> order << order
        counts.entries[pfn] += 1
        counts.references[pfn] += 1
        return
    pfn = huge_pfn_of(entry)
    if pfn != mm.huge_zero_pfn and not is_dax_page(mm, vma, va, entry, pfn):
        for i in range(512):
            counts.entries[pfn + i] += 1
        counts.references[pages.head(pfn)] += 1


def _check_pages(memory: PhysicalMemory, counts: _Counts) -> None:
    cache = Counter[int]()
    for pfn, count in counts.cache.items():
        cache[memory.pages.head(pfn)] += count
    for key, section in memory.pages.sections.items():
        used = np.flatnonzero((section.refcount != 0) | (section.mapcount != 0) | (section.flags != 0))
        for i in used.tolist():
            pfn = key << SECTION_SHIFT | i
            page = memory.pages.page(pfn)
            if page.flags & (PG_ADOPTED | PG_TABLE | PG_HWPOISON):
                continue
            entries = counts.entries[pfn]
            assert page.mapcount == entries, (
                f"page {pfn:#x} must be counted as mapped {entries} times (got {page.mapcount})"
            )
            alone = not page.flags & PG_ANON_EXCLUSIVE or (page.flags & PG_ANON and entries <= 1)
            assert alone, f"exclusive page {pfn:#x} must be anonymous and have one entry (got {entries})"
            if memory.pages.head(pfn) == pfn:
                _check_refcount(memory, pfn, page.refcount, counts, cache[pfn])
    for pfn, entries in counts.entries.items():
        known = memory.pages.refcount(pfn) or not memory.pages.flags(pfn) & (PG_ANON | PG_FILE)
        assert known, f"page {pfn:#x} has {entries} entries and must have references"


def _check_refcount(memory: PhysicalMemory, pfn: int, refcount: int, counts: _Counts, cache: int) -> None:
    flags = memory.pages.flags(pfn)
    order = memory.pages.page(pfn).order
    swap_cache = sum(
        memory.swap.slot_of_page(pfn + i) is not None for i in range(1 if flags & PG_HUGETLB else 1 << order)
    )
    expected = counts.references[pfn] + cache + counts.held[pfn] + swap_cache
    zero = pfn == memory.huge_zero_pfn
    pins, rest = divmod(refcount - expected - zero, GUP_PIN_COUNTING_BIAS)
    right = rest == 0 and pins >= 0
    assert right, f"page {pfn:#x} must have {expected} references (got {refcount})"
    assert bool(flags & PG_SWAPCACHE) == bool(swap_cache), f"page {pfn:#x} must know of its swap slot"
    device = memory.device_of(pfn) is not None
    assert bool(flags & PG_DEVICE) == device, f"page {pfn:#x} must know whether it is a device's"
    if refcount and not device:
        assert not memory.free.is_free(pfn), f"page {pfn:#x} must not be free and in use"


def _check_swap(memory: PhysicalMemory, counts: _Counts) -> None:
    for file in memory.files:
        for index in range(file.npages if file.kind.name == "shmem" else 0):
            slot = file.slot(index)
            if slot is not None:
                counts.slots[slot] += 1
    for slot in {*memory.swap.slots(), *counts.slots}:
        named = memory.swap.count(slot)
        ok = named == counts.slots[slot] or not memory.swap.knows(slot)
        assert ok, f"swap slot {slot:#x} must be named {counts.slots[slot]} times (got {named})"
