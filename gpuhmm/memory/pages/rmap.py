"""Which entries map a page: counting them, and finding them from the page.

Source: mm/rmap.c, include/linux/rmap.h, mm/memory.c:vm_normal_page (v6.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.memory.pages.page import GUP_PIN_COUNTING_BIAS, PG_ADOPTED, PG_ANON, PG_ANON_EXCLUSIVE, PG_FILE
from gpuhmm.mm.entry import PMD_SIZE, RW, SOFT_DIRTY, SPECIAL, huge_pfn_of, pfn_of
from gpuhmm.mm.vma import VM_SHARED, Vma

if TYPE_CHECKING:
    from gpuhmm.memory.pages.physical import PhysicalMemory
    from gpuhmm.memory.space import AddressSpace


def vm_normal_page(mm: AddressSpace, vma: Vma, va: int, pte: int) -> int | None:
    """Return the PFN behind a present PTE if the page has a descriptor, else None.

    Special entries (the zero page, device memory) and pages of DAX files have none: from v6.15 on the latter
    do, but nothing here depends on how often they are mapped.  A page that nobody allocated here is
    adopted: taken to be anonymous in a private area unless it is a clean page of a file, exclusive if
    the entry is writable.
    """
    if pte & SPECIAL:
        return None
    pfn = pfn_of(pte)
    if is_dax_page(mm, vma, va, pte, pfn):
        return None
    if pfn == mm.zero_pfn or pfn > mm.highest_memmap_pfn:
        return None
    memory = mm.memory
    if not memory.pages.refcount(pfn):
        anon = not vma.flags & VM_SHARED and (
            vma.is_anonymous or bool(pte & (RW | SOFT_DIRTY | mm.kernel.dirty_bits))
        )
        mapping = 0 if vma.file is None or anon else vma.file.number
        memory.adopt(pfn, anon=anon, exclusive=anon and bool(pte & RW), mapping=mapping, index=vma.index(va))
    return pfn


def is_dax_page(mm: AddressSpace, vma: Vma, va: int, entry: int, pfn: int) -> bool:
    """True if an entry over ``va`` maps ``pfn`` as memory of a DAX file: DEVMAP tells, or the file does."""
    if entry & mm.kernel.page_devmap:
        return True
    if vma.file is None or not vma.file.kind.dax or vma.index(va) >= vma.file.npages:
        return False
    return vma.file.lookup(vma.index(va)) == pfn


def huge_normal_page(mm: AddressSpace, vma: Vma, va: int, pmd: int) -> int | None:
    """Return the head PFN of a huge page, adopted if need be; None for the huge zero page and DAX."""
    pfn = huge_pfn_of(pmd)
    if is_dax_page(mm, vma, va & -PMD_SIZE, pmd, pfn) or pfn == mm.huge_zero_pfn:
        return None
    if not mm.memory.pages.refcount(pfn):
        anon = not vma.flags & VM_SHARED and vma.is_anonymous
        mapping = 0 if vma.file is None or anon else vma.file.number
        exclusive = anon and bool(pmd & RW)
        index = vma.index(va & -PMD_SIZE)
        mm.memory.adopt(pfn, order=9, anon=anon, exclusive=exclusive, mapping=mapping, index=index)
    return pfn


def page_add_new_anon_rmap(memory: PhysicalMemory, pfn: int, index: int, order: int = 0) -> None:
    """Make a fresh page anonymous, exclusive, and mapped by one entry; ``index`` is its place."""
    pages = memory.pages
    pages.fill(pfn, 1 << order, mapcount=1, flags=PG_ANON)
    pages.set_flags(pfn, PG_ANON | PG_ANON_EXCLUSIVE)
    if not order:
        pages.set_place(pfn, 0, index)
        return
    for done, (section, where) in enumerate(pages.runs(pfn, 1 << order)):
        assert not done  # a huge page never crosses a section
        section.mapping[where] = 0
        section.index[where] = range(index, index + (1 << order))


def page_add_rmap(memory: PhysicalMemory, pfn: int, order: int = 0) -> None:
    """Count one more entry that maps the page, a huge one if ``order``; the caller has its reference."""
    for section, where in memory.pages.runs(pfn, 1 << order):
        section.mapcount[where] += 1


def page_add_anon_rmap(memory: PhysicalMemory, pfn: int, index: int, *, exclusive: bool) -> None:
    """Map an anonymous page once more."""
    pages = memory.pages
    pages.add_mapcount(pfn, 1)
    pages.set_flags(pfn, PG_ANON | (PG_ANON_EXCLUSIVE if exclusive else 0))
    pages.set_place(pfn, 0, index)


def page_remove_rmap(memory: PhysicalMemory, pfn: int, order: int = 0) -> None:
    """Count one entry less; ValueError if none maps the page.

    Of an adopted page only the entry that was met first is counted.
    """
    for section, where in memory.pages.runs(pfn, 1 << order):
        section.mapcount[where] -= 1
        if section.mapcount[where].min() >= 0:
            continue
        if not memory.pages.flags(pfn) & PG_ADOPTED:
            raise ValueError(f"page {pfn:#x} must not be unmapped more often than it is mapped")
        section.mapcount[where] = np.maximum(section.mapcount[where], 0)


def page_try_dup_anon_rmap(memory: PhysicalMemory, pfn: int, order: int = 0) -> bool:
    """Share an anonymous page with one more entry; False if it is pinned and must be copied instead."""
    pages = memory.pages
    if pages.flags(pfn) & PG_ANON_EXCLUSIVE:
        if is_pinned(memory, pfn):
            return False
        pages.set_flags(pfn, 0, PG_ANON_EXCLUSIVE)
    pages.get(pfn)
    page_add_rmap(memory, pfn, order)
    return True


def is_pinned(memory: PhysicalMemory, pfn: int) -> bool:
    """True if somebody pinned the page for I/O (folio_maybe_dma_pinned)."""
    return memory.pages.refcount(pfn) >= GUP_PIN_COUNTING_BIAS


def rmap_walk(memory: PhysicalMemory, pfn: int) -> Iterator[tuple[AddressSpace, Vma, int]]:
    """Yield (space, area, address) wherever the page can be mapped; the entries there tell whether it is.

    Source: mm/rmap.c:rmap_walk_anon, rmap_walk_file (v6.1).
    """
    page = memory.pages.page(pfn)
    file = memory.file(page.mapping) if page.flags & PG_FILE and page.mapping else None
    for mm in list(memory.spaces):
        for vma in list(mm.vmas):
            if file is not None and vma.file is not file:
                continue
            if file is None and vma.flags & VM_SHARED:
                continue
            va = vma.start + ((page.index - vma.pgoff) << 12)
            if vma.start <= va < vma.end:
                yield mm, vma, va
