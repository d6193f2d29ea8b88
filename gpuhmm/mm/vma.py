"""Virtual memory areas: Linux's vm_flags, one area, and the sorted list of them.

Source: include/linux/mm.h, mm/mmap.c (v5.18).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuhmm.mm.entry import NX, PROTNONE, RW, USER, A, P

if TYPE_CHECKING:
    from gpuhmm.memory.pages.filemap import File

VM_READ = 0x1
VM_WRITE = 0x2
VM_EXEC = 0x4
VM_SHARED = 0x8
VM_UFFD_MISSING = 0x200
VM_PFNMAP = 0x400
VM_UFFD_WP = 0x1000
VM_LOCKED = 0x2000
VM_IO = 0x4000
VM_DONTEXPAND = 0x40000
VM_HUGETLB = 0x400000
VM_MIXEDMAP = 0x1000_0000
VM_HUGEPAGE = 0x2000_0000
VM_NOHUGEPAGE = 0x4000_0000

#: Any of these says that a program may touch the area at all (vma_is_accessible).
VM_ACCESS_FLAGS = VM_READ | VM_WRITE | VM_EXEC
#: Areas that hold no ordinary pages (VM_SPECIAL).
VM_SPECIAL = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP

PAGE_SHIFTS = (12, 21, 30)


def vm_page_prot(vm_flags: int) -> int:
    """Return the protection bits of a fresh entry in an area of these flags.

    A private writable area has no RW: the first write copies.  Source:
    arch/x86/include/asm/pgtable_types.h (v5.18).
    """
    if not vm_flags & VM_ACCESS_FLAGS:
        return A | PROTNONE
    prot = P | USER | A
    if vm_flags & VM_WRITE and vm_flags & VM_SHARED:
        prot |= RW
    return prot if vm_flags & VM_EXEC else prot | NX


@dataclass(frozen=True, order=True)
class Vma:
    """One ``vm_area_struct``: ``[start, end)`` in bytes, Linux vm_flags, log2 of its page size.

    ``page_shift`` is 12, or 21 or 30 in a hugetlb area.  ``file`` is what is mapped, from its page
    ``pgoff`` on; None for anonymous memory.  ``page_prot`` are the raw protection bits of a fresh entry
    where they do not follow from the flags (vm_page_prot).  ValueError for unaligned or empty ones.
    """

    start: int
    end: int
    flags: int
    page_shift: int = 12
    file: File | None = field(default=None, compare=False, repr=False)
    pgoff: int = field(default=0, compare=False, repr=False)
    page_prot: int | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("start", "end", "flags", "page_shift"):
            object.__setattr__(self, name, int(getattr(self, name)))
        if self.page_shift not in PAGE_SHIFTS:
            raise ValueError(f"page_shift of a VMA must be one of {PAGE_SHIFTS} (got {self.page_shift})")
        if not 0 <= self.start < self.end <= 1 << 57:
            raise ValueError(
                f"a VMA must have 0 <= start < end <= 2^57 (got start {self.start:#x}, end {self.end:#x})"
            )
        if (self.start | self.end) & ((1 << self.page_shift) - 1):
            raise ValueError(
                f"a VMA must start and end on a multiple of its page size {1 << self.page_shift:#x} "
                f"(got start {self.start:#x}, end {self.end:#x})"
            )
        if not 0 <= self.flags < 1 << 64:
            raise ValueError(f"flags of a VMA must fit in 64 bits (got {self.flags:#x})")

    @property
    def is_hugetlb(self) -> bool:
        """True where the pages come from a hugetlb pool."""
        return self.page_shift != 12

    @property
    def is_anonymous(self) -> bool:
        """True where nothing fills the area but fresh memory (vma_is_anonymous)."""
        return self.file is None or not self.file.kind.has_ops

    @property
    def vm_page_prot(self) -> int:
        """The raw protection bits of a fresh entry: ``page_prot``, or what follows from flags and file."""
        if self.page_prot is not None:
            return self.page_prot
        prot = vm_page_prot(self.flags)
        file = self.file if self.flags & VM_SHARED else None
        if file is not None and (file.kind.page_mkwrite or self.flags & VM_UFFD_WP):
            prot &= ~RW  # vma_wants_writenotify: the first write to each page must be seen
        return prot

    def index(self, va: int) -> int:
        """Return the page of the file, or of anonymous memory, at ``va`` (linear_page_index)."""
        return self.pgoff + ((va - self.start) >> 12)


def _check_apart(vmas: Sequence[Vma]) -> None:
    """ValueError unless areas, sorted by their starts, do not overlap."""
    for left, right in pairwise(vmas):
        if right.start < left.end:
            raise ValueError(
                f"VMAs must not overlap (got [{left.start:#x}, {left.end:#x}) "
                f"and [{right.start:#x}, {right.end:#x}))"
            )


class VmaList:
    """The areas of one address space, sorted and disjoint, with their columns as arrays.

    Iterating yields :class:`Vma`.  ValueError when areas overlap.
    """

    def __init__(self, vmas: Iterable[Vma] = ()) -> None:
        self._vmas: list[Vma] = []
        self._replace(sorted(vmas))

    def _replace(self, vmas: list[Vma]) -> None:
        _check_apart(vmas)
        self._vmas = vmas
        self._starts = [vma.start for vma in vmas]
        self._columns: npt.NDArray[np.uint64] | None = None

    def __iter__(self) -> Iterator[Vma]:
        return iter(self._vmas)

    def __len__(self) -> int:
        return len(self._vmas)

    def __getitem__(self, index: int) -> Vma:
        return self._vmas[index]

    def columns(self) -> npt.NDArray[np.uint64]:
        """Return uint64[4, n]: the starts, ends, flags and page shifts."""
        if self._columns is None:
            rows = [(vma.start, vma.end, vma.flags, vma.page_shift) for vma in self._vmas]
            self._columns = np.ascontiguousarray(np.array(rows, dtype=np.uint64).reshape(-1, 4).T)
        return self._columns

    def find(self, va: int) -> Vma | None:
        """Return the first area that ends above ``va``, which may start above it too (find_vma)."""
        i = bisect_right(self._starts, va)
        if i and self._vmas[i - 1].end > va:
            return self._vmas[i - 1]
        return self._vmas[i] if i < len(self._vmas) else None

    def lookup(self, va: int) -> Vma | None:
        """Return the area that holds ``va``, or None (vma_lookup)."""
        vma = self.find(va)
        return vma if vma is not None and vma.start <= va else None

    def overlapping(self, start: int, end: int) -> list[Vma]:
        """Return the areas that have an address in ``[start, end)``, by address."""
        first = max(bisect_right(self._starts, start) - 1, 0)
        areas = self._vmas[first : bisect_left(self._starts, end)]
        return areas[1:] if areas and areas[0].end <= start else areas

    def add(self, vma: Vma) -> None:
        """Add one area.  ValueError if it overlaps another."""
        at = bisect_right(self._starts, vma.start)
        _check_apart([*self._vmas[max(at - 1, 0) : at], vma, *self._vmas[at : at + 1]])
        self._vmas.insert(at, vma)
        self._starts.insert(at, vma.start)
        self._columns = None

    def replace(self, old: Vma, new: Vma) -> None:
        """Put ``new`` in place of ``old``, which must be in the list."""
        self._replace(sorted([new if vma is old else vma for vma in self._vmas]))

    def split_at(self, va: int) -> None:
        """Make ``va`` a border: cut the area that holds it.  ValueError inside a hugetlb page."""
        vma = self.lookup(va)
        if vma is None or vma.start == va:
            return
        halves = [replace(vma, end=va), replace(vma, start=va, pgoff=vma.index(va))]
        self._replace(sorted([other for other in self._vmas if other is not vma] + halves))

    def cover(self, start: int, end: int) -> list[Vma]:
        """Return the areas that lie in ``[start, end)`` after both ends were made borders."""
        self.split_at(start)
        self.split_at(end)
        return [vma for vma in self._vmas if start <= vma.start and vma.end <= end]

    def merge(self, start: int, end: int) -> None:
        """Join areas that touch within ``[start, end]`` and differ in nothing but place (vma_merge)."""
        joined: list[Vma] = []
        for vma in self._vmas:
            left = joined[-1] if joined else None
            if left is not None and start <= vma.start <= end and _continues(left, vma):
                joined[-1] = replace(left, end=vma.end)
            else:
                joined.append(vma)
        self._replace(joined)

    def remove(self, start: int, end: int) -> None:
        """Drop everything in ``[start, end)``."""
        gone = set(self.cover(start, end))
        self._replace([vma for vma in self._vmas if vma not in gone])

    def set_flags(self, start: int, end: int, keep: int, add: int) -> None:
        """Set the flags of everything in ``[start, end)`` to ``flags & keep | add``."""
        inside = set(self.cover(start, end))
        self._replace(
            [replace(vma, flags=vma.flags & keep | add) if vma in inside else vma for vma in self._vmas]
        )


def _continues(left: Vma, right: Vma) -> bool:
    """True if ``right`` is to ``left`` what the second half of a split area is to the first."""
    return (
        left.end == right.start
        and (left.flags, left.page_shift, left.page_prot) == (right.flags, right.page_shift, right.page_prot)
        and left.file is right.file
        and left.index(right.start) == right.pgoff
    )
