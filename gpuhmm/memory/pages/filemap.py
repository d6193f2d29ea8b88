"""Files and their page cache: what a mapping of a file can be filled with.

Source: mm/filemap.c, mm/shmem.c, fs/dax.c, mm/secretmem.c (v6.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.memory.pages.page import PG_FILE, PG_HUGETLB

if TYPE_CHECKING:
    from gpuhmm.memory.pages.physical import PhysicalMemory

#: Pages that one miss reads around the missing one, half of them before it (ra_pages of 128 KiB).
READ_AROUND_PAGES = 32


@dataclass(frozen=True)
class FileKind:
    """What the mappings of a kind of file can do (``vm_operations_struct``)."""

    name: str
    #: There are vm_ops; without them a private mapping is anonymous memory, as that of /dev/zero.
    has_ops: bool = True
    #: A read fault maps neighbours that are in the page cache (vm_ops->map_pages).
    map_pages: bool = False
    #: A first write is announced to the file system: shared mappings start read-only (page_mkwrite).
    page_mkwrite: bool = False
    #: A hole is filled with a fresh page, by reads too; else it is read from a disk.
    in_memory: bool = True
    #: Pages are the device's own and have no reference counts (DAX).
    dax: bool = False
    #: Pages come from the hugetlb pool.
    hugetlb: bool = False


FILE_KINDS = {
    kind.name: kind
    for kind in (
        FileKind("shmem", map_pages=True),
        FileKind("regular", map_pages=True, page_mkwrite=True, in_memory=False),
        FileKind("dax", page_mkwrite=True, dax=True),
        FileKind("hugetlb", hugetlb=True),
        FileKind("secretmem"),
        FileKind("zero", has_ops=False),
    )
}


class File:
    """A file and its page cache (``struct address_space``).

    ``kind`` names one of FILE_KINDS, ``size`` is in bytes.  ``huge``: the file holds 2 MiB pages where
    its size and alignment allow (shmem mounted ``huge=always``, DAX with aligned extents).  The pages
    of a DAX file are the frames from ``dax_pfn`` on, those of holes excepted (:meth:`punch_hole`).
    ValueError for an unknown kind or a size that is no multiple of the page size.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        size: int,
        kind: str = "shmem",
        *,
        huge: bool = False,
        dax_pfn: int | None = None,
    ) -> None:
        if kind not in FILE_KINDS:
            raise ValueError(f"kind of a file must be one of {', '.join(FILE_KINDS)} (got {kind!r})")
        if size < 0 or size % 4096:
            raise ValueError(f"size of a file must be a multiple of the page size (got {size:#x})")
        self.memory = memory
        self.kind = FILE_KINDS[kind]
        self.size = size
        self.huge = huge
        #: Its name in page descriptors.
        self.number = memory.add_file(self)
        # PFN + 1 by page of the file, and swap slot + 1; 0 where there is none.
        self._pfns = np.zeros(size >> 12, dtype=np.uint64)
        self._slots = np.zeros(size >> 12, dtype=np.uint64)
        if self.kind.dax:
            first = memory.reserve_dax(size >> 12) if dax_pfn is None else dax_pfn
            self._dax_pfn = first
            self._pfns[:] = np.arange(first + 1, first + 1 + (size >> 12), dtype=np.uint64)

    def __repr__(self) -> str:
        return f"File({self.kind.name}, {self.size:#x} bytes)"

    @property
    def npages(self) -> int:
        """Pages of 4 KiB below the end of the file."""
        return self.size >> 12

    def lookup(self, index: int) -> int | None:
        """Return the PFN of page ``index``, None if it is not in memory (filemap_get_folio)."""
        pfn = int(self._pfns[index]) if 0 <= index < self.npages else 0
        return pfn - 1 if pfn else None

    def cached(self) -> list[tuple[int, int]]:
        """Return (index, PFN) of every page in memory."""
        where = np.flatnonzero(self._pfns[: self.npages])
        return [(int(i), int(self._pfns[i]) - 1) for i in where]

    def slot(self, index: int) -> int | None:
        """Return the swap slot that holds page ``index`` of shared memory, or None."""
        slot = int(self._slots[index]) if 0 <= index < self.npages else 0
        return slot - 1 if slot else None

    def set_slot(self, index: int, slot: int | None) -> None:
        """Say that page ``index`` is in that swap slot, or in none."""
        self._slots[index] = 0 if slot is None else slot + 1

    def insert(self, index: int, pfn: int, order: int = 0) -> None:
        """Put a page of ``2**order`` into the page cache, which holds a reference to each of them."""
        pages = self.memory.pages
        count = 1 << order
        self._pfns[index : index + count] = np.arange(pfn + 1, pfn + 1 + count, dtype=np.uint64)
        if self.kind.dax:
            return
        pages.get(pfn, 1 if self.kind.hugetlb else count)
        for done in range(count if not self.kind.hugetlb else 1):
            pages.set_place(pfn + done, self.number, index + done)
            pages.set_flags(pfn + done, PG_FILE | (PG_HUGETLB if self.kind.hugetlb else 0))

    def remove(self, index: int) -> None:
        """Take one page (hugetlb: one huge page) out of the cache and drop its reference."""
        pfn = self.lookup(index)
        if pfn is None:
            return
        if self.kind.dax:
            self._pfns[index] = 0
            return
        head = self.memory.pages.head(pfn)
        count = 1 << self.memory.pages.page(head).order if self.kind.hugetlb else 1
        self._pfns[index : index + count] = 0
        self.memory.pages.set_flags(pfn, 0, PG_FILE)
        self.memory.put_page(pfn)

    def fill_hole(self, index: int) -> int:
        """Give page ``index`` of a DAX file its frame, and return the PFN."""
        self._pfns[index] = self._dax_pfn + index + 1
        return self._dax_pfn + index

    def replace(self, index: int, pfn: int) -> None:
        """Let the cache hold ``pfn`` in place of the page that it holds; the caller moves the references."""
        self._pfns[index] = pfn + 1

    def punch_hole(self, start: int, end: int) -> None:
        """Drop pages ``[start, end)``; entries that map them are the caller's to clear."""
        for index in range(start, min(end, self.npages)):
            self.remove(index)
            if self._slots[index]:
                self.memory.swap.free(int(self._slots[index]) - 1)
                self._slots[index] = 0

    def truncate(self, size: int) -> None:
        """Let the file end at ``size`` bytes; pages beyond leave the cache.  ValueError if it would grow."""
        if size % 4096 or not 0 <= size <= self.size:
            raise ValueError(
                f"a file can only be cut at a page of it (got {size:#x} of {self.size:#x} bytes)"
            )
        self.punch_hole(size >> 12, self.npages)
        self.size = size

    def read_around(self, index: int) -> bool:
        """Read page ``index`` and its neighbours from the disk; False if memory ran out.

        Source: mm/filemap.c:do_sync_mmap_readahead (v6.1).
        """
        first = max(0, index - READ_AROUND_PAGES // 2)
        for other in [index, *range(first, min(first + READ_AROUND_PAGES, self.npages))]:
            if self.lookup(other) is not None:
                continue
            pfn = self.memory.alloc_page()
            if pfn is None:
                return self.lookup(index) is not None
            self.insert(other, pfn)
            self.memory.put_page(pfn)
        return True
