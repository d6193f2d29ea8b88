"""AddressSpace: the ``mm_struct`` that ``hmm_range_fault()`` walks.

It joins raw page tables, VMAs, a kernel profile, interval notifiers and a fault handler, and is
built from given tables or from nothing with :meth:`AddressSpace.mmap` and
:meth:`AddressSpace.map_pfns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuhmm.mm import x86
from gpuhmm.mm.arguments import check_array, check_pfn
from gpuhmm.mm.entry import NONE, PSE, RW, TABLE, A, D
from gpuhmm.mm.given_tables import tables_of_pages
from gpuhmm.mm.handler import FaultHandler
from gpuhmm.mm.mmap_lock import MmapLock, write_locked
from gpuhmm.mm.notifier import Invalidate, MmuIntervalNotifier, NotifierSubscriptions
from gpuhmm.mm.profile import KernelProfile, kernel_profile
from gpuhmm.mm.tables import NO_CHILD, PageTables, Words
from gpuhmm.mm.vma import VM_READ, VM_WRITE, Vma, VmaList
from gpuhmm.mm.x86 import NO_PFN, ZERO_PFN, level_shift

if TYPE_CHECKING:
    from gpuhmm.memory.pages.filemap import File
    from gpuhmm.memory.pages.physical import PhysicalMemory


class AddressSpace:
    """Raw x86-64 page tables, VMAs and everything else that a walk consults.

    ``AddressSpace()`` is empty; :meth:`from_tables` takes the pages of a real one.  ``faults`` is a
    :class:`gpuhmm.FaultHandler`; without one, gpuhmm's own model of ``handle_mm_fault()`` serves.
    ``memory`` is the machine whose pages it maps; without one it has a machine of its own.  ``shstk``: its
    CPU has user shadow stacks, so that kernels from v6.6 on take an entry with D and without RW for writable.
    """

    def __init__(
        self,
        *,
        levels: int = 4,
        root_pfn: int = 1,
        vmas: Iterable[Vma] = (),
        kernel: str | KernelProfile = "v5.18",
        zero_pfn: int = ZERO_PFN,
        huge_zero_pfn: int = NO_PFN,
        highest_memmap_pfn: int = x86.MAX_PFN - 1,
        device_private: Iterable[tuple[int, int, int]] = (),
        shstk: bool = False,
        faults: FaultHandler | None = None,
        page_tables: PageTables | None = None,
        memory: PhysicalMemory | None = None,
    ) -> None:
        self.kernel = kernel_profile(kernel)
        self.page_tables = PageTables(levels, root_pfn, self.kernel) if page_tables is None else page_tables
        self.levels = levels
        self.root_pfn = root_pfn
        check_pfn("zero_pfn", zero_pfn)
        check_pfn("highest_memmap_pfn", highest_memmap_pfn)
        if huge_zero_pfn != NO_PFN:
            check_pfn("huge_zero_pfn", huge_zero_pfn)
        self.zero_pfn = zero_pfn
        self.huge_zero_pfn = huge_zero_pfn
        self.highest_memmap_pfn = highest_memmap_pfn
        self.device_private = _owner_table(device_private)
        self.shstk = bool(shstk)
        self.vmas = VmaList(vmas)
        for vma in self.vmas:
            self._check_top(vma.end)
        self.mmap_lock = MmapLock()
        self.subscriptions = NotifierSubscriptions()
        self._faults = faults
        self._table_pfn = root_pfn
        self._memory: PhysicalMemory | None = None
        if memory is not None:
            memory.add_space(self)
            self._memory = memory

    @classmethod
    def from_tables(
        cls,
        *,
        levels: int,
        root_pfn: int,
        table_pfns: Words,
        tables: Words,
        vmas: Iterable[Vma],
        kernel: str | KernelProfile = "v5.18",
        zero_pfn: int = ZERO_PFN,
        huge_zero_pfn: int = NO_PFN,
        highest_memmap_pfn: int = x86.MAX_PFN - 1,
        device_private: Iterable[tuple[int, int, int]] = (),
        shstk: bool = False,
        faults: FaultHandler | None = None,
    ) -> AddressSpace:
        """Return the space of given page-table pages; they are copied.

        ``table_pfns`` is uint64[n] in any order, ``tables`` uint64[n, 512] the raw entries of each,
        ``device_private`` rows of (first PFN, end PFN, owner).  ValueError for tables that form no
        tree (see :func:`gpuhmm.mm.given_tables.tables_of_pages`), overlapping VMAs and PFNs beyond 52 bits.
        """
        profile = kernel_profile(kernel)
        made = tables_of_pages(levels, int(root_pfn), table_pfns, tables, profile)
        return cls(
            levels=levels,
            root_pfn=int(root_pfn),
            vmas=vmas,
            kernel=profile,
            zero_pfn=int(zero_pfn),
            huge_zero_pfn=int(huge_zero_pfn),
            highest_memmap_pfn=int(highest_memmap_pfn),
            device_private=device_private,
            shstk=shstk,
            faults=faults,
            page_tables=made,
        )

    @property
    def task_size(self) -> int:
        """The first address that the page tables cannot translate: 2^48 or 2^57."""
        return 1 << (12 + 9 * self.levels)

    @property
    def memory(self) -> PhysicalMemory:
        """The machine's memory, made when it is first asked for."""
        if self._memory is None:
            from gpuhmm.memory.pages.physical import PhysicalMemory

            memory = PhysicalMemory()
            memory.add_space(self)
            self._memory = memory
        return self._memory

    @property
    def faults(self) -> FaultHandler:
        """The handler of faults; the default model is made when it is first asked for."""
        if self._faults is None:
            from gpuhmm.memory.fault.model import FaultModel

            self._faults = FaultModel()
        return self._faults

    @faults.setter
    def faults(self, handler: FaultHandler | None) -> None:
        self._faults = handler

    # -- entries ------------------------------------------------------------------------------

    def entry(self, va: int, level: int) -> int:
        """Return the raw entry of ``level`` (1 PTE, 2 PMD, 3 PUD, 4, 5) over ``va``; 0 without a table."""
        return self.page_tables.entry(int(va), level)

    @write_locked
    def set_entry(self, va: int, level: int, value: int) -> None:
        """Store a raw entry; one that points to an unknown table PFN adds an empty table.

        ValueError where no table covers ``va`` at that level.
        """
        self.page_tables.set_entry(int(va), level, int(value))

    def tables(self) -> tuple[Words, Words]:
        """Return a copy of all table pages: their PFNs, uint64[n], and entries, uint64[n, 512]."""
        with self.mmap_lock.read():
            return self.page_tables.pages()

    # -- notifiers ----------------------------------------------------------------------------

    def notifier(self, start: int, end: int, invalidate: Invalidate | None = None) -> MmuIntervalNotifier:
        """Return a new interval notifier over ``[start, end)``, with the driver's callback if it has one.

        ValueError for an empty range.
        """
        return MmuIntervalNotifier(self, int(start), int(end), invalidate)

    # -- building a space from nothing --------------------------------------------------------

    @write_locked
    def mmap(
        self,
        start: int,
        end: int,
        flags: int = VM_READ | VM_WRITE,
        page_shift: int = 12,
        *,
        file: File | None = None,
        pgoff: int | None = None,
    ) -> Vma:
        """Add a VMA over ``[start, end)``, of ``file`` from its page ``pgoff`` on, and return it.

        ValueError if it overlaps another.
        """
        if pgoff is None:
            pgoff = start >> 12 if file is None else 0
        vma = Vma(start, end, flags, page_shift, file, pgoff)
        self._check_top(end)
        self.vmas.add(vma)
        return vma

    def munmap(self, start: int, end: int) -> int:
        """Remove areas and their pages in ``[start, end)``; see :func:`gpuhmm.memory.munmap`."""
        from gpuhmm.memory.mmap import munmap

        return munmap(self, start, end)

    def mprotect(self, start: int, end: int, prot: int) -> int:
        """Set VM_READ, VM_WRITE and VM_EXEC of ``[start, end)``; see :func:`gpuhmm.memory.mprotect`."""
        from gpuhmm.memory.change_protection import mprotect

        return mprotect(self, start, end, prot)

    def give_file(self, vma: Vma) -> Vma:
        """Put a file of its own behind a shared area that has none, as mmap does (shmem_zero_setup)."""
        from gpuhmm.memory.pages.filemap import File

        current = self.vmas.lookup(vma.start)
        if current is not None and current.file is not None:
            return current
        kind = "hugetlb" if vma.is_hugetlb else "shmem"
        file = File(self.memory, vma.end - vma.start, kind)
        given = replace(vma, file=file, pgoff=0)
        self.vmas.replace(vma if current is None else current, given)
        return given

    def get_huge_zero_page(self) -> int:
        """Return the PFN of the huge zero page, allocated if need be; NO_PFN if there is no memory."""
        if self.huge_zero_pfn == NO_PFN:
            pfn = self.memory.get_huge_zero_page()
            self.huge_zero_pfn = NO_PFN if pfn is None else pfn
        return self.huge_zero_pfn

    @write_locked
    def map_pfns(self, va: int, pfns: Words, *, level: int = 1, flags: int | None = None) -> None:
        """Map consecutive pages from ``va`` on: at 4 KiB (level 1), 2 MiB (2) or 1 GiB (3).

        ``pfns`` is uint64[n], the first PFN of each page.  ``flags`` are the raw bits next to the
        PFN; without them they follow from the VMA at ``va``: young, dirty, writable in a writable
        area.  Tables that are missing are made.  ValueError for PFNs that are unaligned or beyond
        52 bits, and where a table of smaller pages stands in the way.
        """
        check_array("pfns", pfns, (None,))
        if level not in (1, 2, 3):
            raise ValueError(f"level must be 1 (4 KiB), 2 (2 MiB) or 3 (1 GiB) (got {level})")
        size = 1 << level_shift(level)
        if va % size:
            raise ValueError(f"va must be a multiple of the page size {size:#x} (got {va:#x})")
        self._check_top(va + size * len(pfns))
        if len(pfns) and (int(pfns.max()) >= x86.MAX_PFN or (pfns & np.uint64((size >> 12) - 1)).any()):
            raise ValueError(f"pfns must lie below 2^40 and be multiples of {size >> 12:#x}")
        if flags is None:
            flags = self._default_flags(va, level)
        entries = (pfns << x86.PAGE_SHIFT) | np.uint64(flags)
        if self._memory is not None:
            for pfn in pfns.tolist():
                self._memory.reserve(pfn, pfn + (size >> 12))
        for row, slot, done, count in self._rows(va, len(pfns), level):
            if level > 1 and (self.page_tables.child[row, slot : slot + count] != NO_CHILD).any():
                raise ValueError(f"tables of smaller pages stand where {size:#x} pages are mapped at {va:#x}")
            self.page_tables.store(level, row, slot, entries[done : done + count])

    def new_table_pfn(self) -> int:
        """Return a PFN that no table has, for a table to come."""
        known = self.page_tables
        pfn = self._table_pfn
        while pfn in known.where or pfn in known.unreached:
            pfn = pfn + 1 if pfn + 1 < x86.MAX_PFN else 1
        self._table_pfn = pfn
        return pfn

    @write_locked
    def make_tables(self, va: int, level: int) -> None:
        """Make every missing table on the way to the entry of ``level`` over ``va`` (__pmd_alloc and kin)."""
        for upper in range(self.levels, level, -1):
            value = self.entry(va, upper)
            if value & ~NONE:
                if self.page_tables.row(va, upper - 1) == NO_CHILD:
                    raise ValueError(f"the level {upper} entry {value:#x} over va {va:#x} is no table")
                continue
            self.set_entry(va, upper, self.new_table_pfn() << 12 | TABLE)

    def _rows(self, va: int, npages: int, level: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (row, slot, pages before, pages) for each table under ``npages`` pages, making tables."""
        done = 0
        while done < npages:
            at = va + (done << level_shift(level))
            self.make_tables(at, level)
            slot = at >> level_shift(level) & 511
            count = min(512 - slot, npages - done)
            yield self.page_tables.row(at, level), slot, done, count
            done += count

    def _default_flags(self, va: int, level: int) -> int:
        vma = self.vmas.lookup(va)
        if vma is None:
            raise ValueError(f"va {va:#x} must lie in a VMA, or flags be given")
        flags = vma.vm_page_prot | A
        if vma.flags & VM_WRITE:
            flags |= RW | D
        return flags | (PSE if level > 1 else 0)

    def _check_top(self, end: int) -> None:
        if end > self.task_size:
            raise ValueError(f"addresses must lie below {self.task_size:#x} (got {end:#x})")


def _owner_table(device_private: Iterable[tuple[int, int, int]]) -> npt.NDArray[np.uint64]:
    """Return uint64[n, 3], sorted: first PFN, end PFN, owner.  ValueError for empty or overlapping rows."""
    rows = sorted((int(first), int(end), int(owner)) for first, end, owner in device_private)
    for first, end, owner in rows:
        if not 0 <= first < end <= 1 << 50 or not 0 <= owner < 1 << 64:
            raise ValueError(
                "device_private must hold (first PFN, end PFN, owner) with first < end <= 2^50 and "
                f"a 64-bit owner (got {first:#x}, {end:#x}, {owner:#x})"
            )
    for left, right in pairwise(rows):
        if right[0] < left[1]:
            raise ValueError(f"device_private ranges must not overlap (got {left} and {right})")
    return np.array(rows, dtype=np.uint64).reshape(-1, 3)
