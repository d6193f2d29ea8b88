"""A machine's memory: page descriptors, free frames, swap, the hugetlb pool, files and devices.

Address spaces that were forked from one another share it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from gpuhmm.memory.pages.device import DeviceMemory
from gpuhmm.memory.pages.page import (
    PG_ADOPTED,
    PG_ANON,
    PG_ANON_EXCLUSIVE,
    PG_DEVICE,
    PG_FILE,
    PG_HUGETLB,
    PG_SWAPCACHE,
    PG_TABLE,
    SECTION_MASK,
    PageDescriptors,
)
from gpuhmm.memory.pages.page_alloc import FreeFrames, taken_ranges
from gpuhmm.memory.pages.swapfile import SwapDevice
from gpuhmm.mm import x86
from gpuhmm.mm.tables import Words

if TYPE_CHECKING:
    from gpuhmm.memory.pages.filemap import File
    from gpuhmm.memory.space import AddressSpace


#: References that an adopted page has from others: more than can ever be dropped here, fewer than a pin.
ELSEWHERE = 1000


class Migration(Protocol):
    """Pages under migration, as memory knows them: see :class:`gpuhmm.memory.Migration`."""

    @property
    def destinations(self) -> dict[int, int]:
        """Where each page goes: PFN -> PFN; of both a reference is held until the end."""
        ...

    def covers(self, mm: AddressSpace, va: int, pfn: int) -> bool:
        """True if the page at ``va`` of ``mm``, which was ``pfn``, is one of those that move."""
        ...

    def end(self) -> int:
        """Put present entries in place of all migration entries; return how many pages moved."""
        ...


class PhysicalMemory:
    """What the address spaces of one machine share.

    ``frames`` limits the 4 KiB frames that may be in use, ``hugetlb_pages`` the pages of the hugetlb
    pool, ``swap_slots`` the pages in swap; None for no limit.  ``thp`` is
    /sys/kernel/mm/transparent_hugepage/enabled: ``always``, ``madvise`` or ``never``.
    """

    def __init__(
        self,
        *,
        frames: int | None = None,
        hugetlb_pages: int | None = None,
        swap_slots: int | None = None,
        thp: str = "madvise",
        use_zero_page: bool = True,
    ) -> None:
        if thp not in ("always", "madvise", "never"):
            raise ValueError(f"thp must be always, madvise or never (got {thp!r})")
        self.pages = PageDescriptors()
        self.swap = SwapDevice(swap_slots)
        self.thp = thp
        self.use_zero_page = use_zero_page
        self.frames = frames
        self.hugetlb_left = hugetlb_pages
        #: Every address space that is alive, oldest first.
        self.spaces: list[AddressSpace] = []
        self.devices: list[DeviceMemory] = []
        #: Migrations that began and have not ended.
        self.migrations: list[Migration] = []
        self._files: list[File] = []
        self._free: FreeFrames | None = None
        self._reserved: list[tuple[int, int]] = []
        #: The huge zero page, once a space of this machine had it allocated.
        self.huge_zero_pfn: int | None = None
        #: Frames that :meth:`alloc_page` gave and that are still in use.
        self.nr_used = 0

    # -- who is here --------------------------------------------------------------------------

    def add_space(self, mm: AddressSpace) -> None:
        """Count an address space among those that share this memory; they share one lock too."""
        if self.spaces:
            mm.mmap_lock = self.spaces[0].mmap_lock
        self.spaces.append(mm)

    def add_file(self, file: File) -> int:
        """Return the number under which page descriptors name ``file``: 1, 2, ..."""
        self._files.append(file)
        return len(self._files)

    def file(self, number: int) -> File:
        """Return the file of that number."""
        return self._files[number - 1]

    @property
    def files(self) -> list[File]:
        """All files, by number."""
        return list(self._files)

    def device_of(self, pfn: int) -> DeviceMemory | None:
        """Return the device to which a PFN belongs, if any."""
        for device in self.devices:
            if device.first_pfn <= pfn < device.first_pfn + device.npages:
                return device
        return None

    def migration_of(self, mm: AddressSpace, va: int, pfn: int) -> Migration | None:
        """Return the migration under way for the page at ``va``, which was ``pfn``, if it is known."""
        for migration in self.migrations:
            if migration.covers(mm, va, pfn):
                return migration
        return None

    # -- frames -------------------------------------------------------------------------------

    @property
    def free(self) -> FreeFrames:
        """The free frames; found when they are first asked for, from what the spaces map by then."""
        if self._free is None:
            top = min((mm.highest_memmap_pfn for mm in self.spaces), default=x86.MAX_PFN - 1) + 1
            self._free = FreeFrames(self._taken(), top, self.frames)
        return self._free

    def _taken(self) -> Words:
        parts = [(np.array([0], dtype=np.uint64), 1)]
        parts += [(np.array([first], dtype=np.uint64), end - first) for first, end in self._reserved]
        for mm in self.spaces:
            tables = mm.page_tables
            known = np.array([*tables.where, *tables.unreached, mm.zero_pfn], dtype=np.uint64)
            parts += [(known, 1), (_mapped(tables.leaf), 1), (_mapped(tables.upper), 1 << 18)]
            if mm.huge_zero_pfn < x86.MAX_PFN:
                parts.append((np.array([mm.huge_zero_pfn], dtype=np.uint64), 512))
            for first, end, _ in mm.device_private.tolist():
                parts.append((np.array([first], dtype=np.uint64), end - first))
        return taken_ranges(parts)

    def limit_frames(self, frames: int) -> None:
        """Let at most that many frames be handed out from now on."""
        self.frames = frames
        if self._free is not None:
            self._free.left = frames

    def reserve(self, first: int, end: int) -> None:
        """Say that the frames ``[first, end)`` are in use, so that they are never handed out."""
        if self._free is None:
            self._reserved.append((first, end))
        else:
            self._free.reserve(first, end)

    def reserve_dax(self, npages: int) -> int:
        """Return the first of ``npages`` frames, 2 MiB aligned, of memory that is a file (pmem)."""
        first = -(-self._top_of_devices() // 512) * 512
        self.reserve(first, first + npages)
        self._dax_top = first + npages
        return first

    _dax_top = 1 << 33

    def _top_of_devices(self) -> int:
        return max([self._dax_top, *(device.first_pfn + device.npages for device in self.devices)])

    def reserve_device(self, npages: int) -> int:
        """Return the first of ``npages`` PFNs for a device, above all memory (request_free_mem_region)."""
        return self.reserve_dax(npages)

    def alloc_page(self, order: int = 0, flags: int = 0) -> int | None:
        """Return the first PFN of a page of ``2**order`` with one reference; None if there is no memory."""
        pfn = self.free.take(order)
        if pfn is None:
            return None
        self.nr_used += 1 << order
        # Everything else is zero: that is how free frames are left.
        if order:
            self.pages.fill(pfn, 1 << order, flags=flags, order=order)
        else:
            self.pages.set_flags(pfn, flags)
        self.pages.get(pfn)
        return pfn

    def get_huge_zero_page(self) -> int | None:
        """Return the huge zero page that all spaces share, allocated if need be; None without memory."""
        if self.huge_zero_pfn is None:
            given = [mm.huge_zero_pfn for mm in self.spaces if mm.huge_zero_pfn < x86.MAX_PFN]
            self.huge_zero_pfn = given[0] if given else self.alloc_page(9)
        return self.huge_zero_pfn

    def alloc_table(self) -> int | None:
        """Return the PFN of a page for a page table; None if there is no memory."""
        return self.alloc_page(0, PG_TABLE)

    def alloc_huge_page(self, order: int) -> int | None:
        """Return a page of the hugetlb pool, ``2**order`` frames; None if the pool is empty."""
        if self.hugetlb_left == 0:
            return None
        pfn = self.alloc_page(order, PG_HUGETLB)
        if pfn is not None and self.hugetlb_left is not None:
            self.hugetlb_left -= 1
        return pfn

    def put_page(self, pfn: int, count: int = 1) -> None:
        """Drop references to a page; without any left it is free again.

        ValueError if there are not that many.
        """
        head = self.pages.head(pfn)
        if self.pages.get(head, -count):
            return
        section, i = self.pages.section(head), head & SECTION_MASK
        flags, order = int(section.flags[i]), int(section.order[i])
        self.pages.fill(head, 1 << order, flags=0, mapcount=0, order=0, mapping=0, index=0, content=0)
        if flags & PG_DEVICE:
            device = self.device_of(head)
            assert device is not None
            device.page_free(head)
            return
        if flags & PG_HUGETLB and self.hugetlb_left is not None:
            self.hugetlb_left += 1
        if not flags & PG_ADOPTED:
            self.nr_used -= 1 << order
            self.free.give(head, order)

    def split_huge_page(self, pfn: int) -> None:
        """Turn the compound page of ``pfn`` into single pages; those that nobody maps any more are free.

        All references must be those of entries, and of the page cache (split_huge_page).
        """
        head = self.pages.head(pfn)
        page = self.pages.page(head)
        self.pages.split(head)
        for one in range(head, head + (1 << page.order)):
            if self.pages.refcount(one):
                continue
            self.pages.fill(one, 1, flags=0, index=0, content=0, mapping=0)
            if not page.flags & PG_ADOPTED:
                self.nr_used -= 1
                self.free.give(one)

    # -- pages that came with given page tables ----------------------------------------------

    def adopt(
        self,
        pfn: int,
        *,
        order: int = 0,
        anon: bool,
        exclusive: bool,
        mapping: int = 0,
        index: int = 0,
    ) -> None:
        """Give a page that nobody allocated here a descriptor, unless it has one.

        One entry maps it; a page that is not exclusive is assumed to be in use elsewhere, too, for good.
        """
        if self.pages.refcount(pfn):
            return
        kind = (PG_ANON | (PG_ANON_EXCLUSIVE if exclusive else 0)) if anon else PG_FILE
        self.pages.fill(
            pfn, 1 << order, order=order, mapcount=1, flags=(kind & ~PG_ANON_EXCLUSIVE) | PG_ADOPTED
        )
        self.pages.set_flags(pfn, kind)
        self.pages.get(pfn, 1 if exclusive else 1 + ELSEWHERE)
        for done in range(1 << order):
            self.pages.set_place(pfn + done, mapping, index + done)

    # -- the swap cache -----------------------------------------------------------------------

    def add_to_swap_cache(self, slot: int, pfn: int) -> None:
        """Let ``pfn`` stand for the slot; the cache holds a reference."""
        self.pages.get(pfn)
        self.pages.set_flags(pfn, PG_SWAPCACHE)
        self.swap.set_cached(slot, pfn)

    def free_swap(self, pfn: int) -> bool:
        """Take a page out of the swap cache if no entry names its slot (folio_free_swap)."""
        slot = self.swap.slot_of_page(pfn)
        if slot is None or self.swap.count(slot):
            return False
        self.delete_from_swap_cache(slot, pfn)
        return True

    def delete_from_swap_cache(self, slot: int, pfn: int) -> None:
        """Take a page out of the swap cache and drop the cache's reference."""
        self.swap.set_cached(slot, None)
        self.pages.set_flags(pfn, 0, PG_SWAPCACHE)
        self.put_page(pfn)

    def swap_free(self, slot: int) -> None:
        """Count one entry less that names the slot; a cached page that nobody else needs is free too."""
        self.swap.free(slot)
        pfn = self.swap.cached(slot)
        if pfn is not None and not self.swap.count(slot) and self.pages.refcount(pfn) == 1:
            self.delete_from_swap_cache(slot, pfn)


def _mapped(entries: Words) -> Words:
    """Return the PFNs of all entries that are not zero, whatever they are."""
    entries = entries[entries != 0]
    upright = np.where((entries & x86.PAGE_PRESENT) == 0, ~entries, entries)
    return np.unique((upright & x86.PTE_PFN_MASK) >> x86.PAGE_SHIFT)
