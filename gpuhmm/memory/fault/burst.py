"""A fault at every page of a range, as ``hmm_vma_fault()`` makes them: in bulk where that changes nothing.

Result, entries, page state and the order of frames are those of calling ``handle_mm_fault()`` page by page;
what is not first or repeated touch of anonymous memory, or a repeated touch of a huge page, is done so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.memory.fault.handle import handle_mm_fault
from gpuhmm.memory.fault.huge import huge_zero_pmd, hugepage_vma_check
from gpuhmm.memory.fault.vm_fault import Fault
from gpuhmm.memory.pages.page import PG_ANON, PG_ANON_EXCLUSIVE, PG_TABLE, SECTION_MASK, SECTION_PAGES
from gpuhmm.mm.entry import DIRTY, NONE, PMD_SIZE, PROTNONE, PSE, RW, SPECIAL, TABLE, A, P, mk_pte
from gpuhmm.mm.handler import FAULT_FLAG_WRITE, VM_FAULT_ERROR
from gpuhmm.mm.tables import NO_CHILD
from gpuhmm.mm.vma import VM_SHARED, VM_UFFD_MISSING, VM_WRITE, Vma
from gpuhmm.mm.x86 import NO_PFN

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

#: Below this many pages the way into compiled code costs more than it saves.
SMALLEST_BURST = 32

_U64 = np.uint64


def handle_mm_fault_range(mm: AddressSpace, vma: Vma, start: int, end: int, flags: int) -> tuple[int, int]:
    """Fault every page of ``[start, end)``; return how many calls that took, and what the last returned.

    An error ends it, as it ends ``hmm_vma_fault()``.
    """
    if (end - start) >> 12 < SMALLEST_BURST:
        return _one_by_one(mm, vma, start, end, flags)
    return _Burst(mm, vma, flags).run(start, end)


def _one_by_one(mm: AddressSpace, vma: Vma, start: int, end: int, flags: int) -> tuple[int, int]:
    calls, ret = 0, 0
    for va in range(start, end, 4096):
        calls, ret = calls + 1, handle_mm_fault(mm, vma, va, flags)
        if ret & VM_FAULT_ERROR:
            break
    return calls, ret


class _Burst:
    def __init__(self, mm: AddressSpace, vma: Vma, flags: int) -> None:
        self.mm = mm
        self.memory = mm.memory
        self.tables = mm.page_tables
        self.vma = vma
        self.flags = flags
        self.write = bool(flags & FAULT_FLAG_WRITE)
        vmf = Fault(mm, vma, vma.start, flags)
        #: Empty entries are filled with anonymous memory, and nothing else has a say.
        self.anonymous = (
            vma.is_anonymous and not vma.is_hugetlb and not vma.flags & (VM_SHARED | VM_UFFD_MISSING)
        )
        self.huge = hugepage_vma_check(vmf)
        # A burst of writes in an area that cannot be written is an error at its first page.
        self.allowed = not self.write or bool(vma.flags & VM_WRITE)
        self.zero_pte = mk_pte(mm.zero_pfn, vmf.prot) | SPECIAL
        self.fresh = vmf.maybe_mkwrite(mk_pte(0, vmf.prot) | DIRTY)
        self.bulk = self.allowed and bool(vmf.prot & P)

    def run(self, start: int, end: int) -> tuple[int, int]:
        self._reserve(start, end)
        calls, ret, va = 0, 0, start
        while va < end:
            served = self._in_bulk(va, end) if self.bulk else 0
            if served:
                calls, va, ret = calls + served, va + (served << 12), 0
                continue
            calls, ret = calls + 1, handle_mm_fault(self.mm, self.vma, va, self.flags)
            if ret & VM_FAULT_ERROR:
                break
            va += 4096
        return calls, ret

    def _reserve(self, start: int, end: int) -> None:
        """Make room for the tables and descriptors to come, if that is much."""
        if not self.anonymous or end - start <= 64 * PMD_SIZE:
            return
        tables = (end - start) // PMD_SIZE
        if not self.huge:
            self.tables.reserve(leaf=len(self.tables.leaf) + tables + 1)
        if self.write:
            self.memory.pages.reserve(*self.memory.free.peek_run(513 * tables))

    def _in_bulk(self, va: int, end: int) -> int:
        """Serve faults from ``va`` on; return how many, 0 where the next has to be served by itself."""
        if self.vma.is_hugetlb:
            return self._rest_of_huge_page(va, end, 3 if self.vma.page_shift == 30 else 2)
        row = self.tables.row(va, 1)
        if row != NO_CHILD:
            return self._in_table(va, end, row)
        pmd = self.mm.entry(va, 2)
        if pmd & ~NONE:
            return self._rest_of_huge_page(va, end, 2)
        above = self.tables.row(va, 2)
        if above == NO_CHILD or not self.anonymous or va % PMD_SIZE:
            return 0
        count = self._empty_pmds(va, end, above)
        if not count:
            return 0
        if self.huge and self._spans_huge_page(va):
            return self._huge_pages(va, above, count)
        return 0 if self.huge else self._leaf_tables(va, above, count)

    def _rest_of_huge_page(self, va: int, end: int, level: int) -> int:
        """A huge entry that grants the access already: every further fault in it changes nothing."""
        entry = self.mm.entry(va, level)
        if not entry & P or not entry & self.mm.kernel.huge_bits or (entry & PROTNONE and not entry & P):
            return 0
        if self.write and entry & (RW | A | DIRTY) != RW | A | DIRTY:
            return 0
        size = 1 << (30 if level == 3 else 21)
        return (min((va & -size) + size, end) - va) >> 12

    def _in_table(self, va: int, end: int, row: int) -> int:
        from gpuhmm.memory.fault.burst_compiled import touch

        memory = self.memory
        slot = va >> 12 & 511
        count = min(512 - slot, (end - va) >> 12)
        pfn, npfns = memory.free.peek_run(count) if self.write and self.anonymous else (0, 0)
        base = pfn & SECTION_MASK
        npfns = min(npfns, SECTION_PAGES - base)
        section = memory.pages.section(pfn)
        served, used = touch(
            self.tables.leaf[row, slot : slot + count],
            self.write,
            self.anonymous,
            _U64(self.zero_pte),
            _U64(self.fresh),
            _U64(pfn),
            _U64(npfns),
            section.refcount,
            section.mapcount,
            section.flags,
            section.index,
            _U64(base),
            _U64(self.vma.index(va)),
        )
        memory.free.take_run(int(used))
        memory.nr_used += int(used)
        if served:
            self.tables.leaf_changed(row)
        return int(served)

    def _empty_pmds(self, va: int, end: int, row: int) -> int:
        """Return how many PMDs from ``va`` on are empty, in one table and as a whole in the range."""
        slot = va >> 21 & 511
        most = min(512 - slot, (end - va) // PMD_SIZE)
        used = np.flatnonzero(self.tables.upper[row, slot : slot + most])
        return int(used[0]) if len(used) else most

    def _spans_huge_page(self, va: int) -> bool:
        return self.vma.start <= va and va + PMD_SIZE <= self.vma.end

    def _huge_pages(self, va: int, row: int, count: int) -> int:
        """Map huge pages, or the huge zero page, in empty PMDs; count 512 faults for each."""
        slot = va >> 21 & 511
        count = min(count, (self.vma.end - va) // PMD_SIZE)
        if not self.write and self.memory.use_zero_page:
            zero = self.mm.huge_zero_pfn
            if zero == NO_PFN:
                return 0  # the first fault allocates it
            entry = huge_zero_pmd(self.mm, self.vma)
            self.tables.store(2, row, slot, np.full(count, entry, dtype=_U64))
            return count * 512
        pfn, count = self.memory.free.take_blocks(9, count)
        if not count:
            return 0
        flags = self.vma.vm_page_prot | PSE | DIRTY
        flags |= RW if self.vma.flags & VM_WRITE else 0
        heads = np.arange(pfn, pfn + 512 * count, 512, dtype=_U64)
        self._describe_huge(pfn, count, self.vma.index(va))
        self.tables.store(2, row, slot, (heads << _U64(12)) | _U64(flags))
        return count * 512

    def _describe_huge(self, pfn: int, count: int, index: int) -> None:
        pages = self.memory.pages
        self.memory.nr_used += 512 * count
        for section, where in pages.runs(pfn, 512 * count):
            section.flags[where] = PG_ANON
            section.order[where] = 9
            section.mapcount[where] = 1
            length = where.stop - where.start
            section.index[where] = np.arange(index, index + length, dtype=_U64)
            heads = slice(where.start, where.stop, 512)
            section.flags[heads] = PG_ANON | PG_ANON_EXCLUSIVE
            section.refcount[heads] = 1
            index += length

    def _leaf_tables(self, va: int, row: int, count: int) -> int:
        """Make leaf tables in empty PMDs and fill them; 512 faults each."""
        from gpuhmm.memory.fault.burst_compiled import describe_tables, fill_tables

        memory, slot = self.memory, va >> 21 & 511
        frames = 513 if self.write else 1
        pfn, run = memory.free.peek_run(frames * count)
        count = run // frames
        if not count:
            return 0
        memory.free.take_run(frames * count)
        memory.nr_used += frames * count
        tables = np.arange(pfn, pfn + frames * count, frames, dtype=_U64)
        leaves = self.tables.attach_leaf_tables(row, slot, (tables << _U64(12)) | _U64(TABLE))
        if not self.write:
            leaves[:] = self.zero_pte
            memory.pages.fill(pfn, count, refcount=1, flags=PG_TABLE)
            return count * 512
        fill_tables(leaves, _U64(pfn), _U64(self.fresh))
        done, index = 0, self.vma.index(va)
        for section, where in memory.pages.runs(pfn, frames * count):
            arrays = (section.refcount, section.mapcount, section.flags, section.index)
            describe_tables(*(array[where] for array in arrays), _U64(done), _U64(index))
            done += where.stop - where.start
        return count * 512
