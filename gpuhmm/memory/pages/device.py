"""Memory of a device that has page descriptors: private (the CPU cannot reach it) or coherent.

Source: include/linux/memremap.h:struct dev_pagemap, lib/test_hmm.c:dmirror_devmem (v6.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.memory.pages.page import PG_ANON, PG_DEVICE

if TYPE_CHECKING:
    from gpuhmm.memory.pages.physical import PhysicalMemory
    from gpuhmm.memory.space import AddressSpace


class DeviceMemory:
    """``npages`` frames of a device, whose pages processes may own.

    ``owner`` is what drivers call ``pgmap->owner``: nonzero, below 2^64.  ``coherent``: the CPU reaches the
    memory, and page tables map it like any other; else entries that stand for its pages are not present.
    ``migrated``, if set, is called with each PFN that a CPU fault is about to take back.
    """

    def __init__(self, memory: PhysicalMemory, owner: int, npages: int, *, coherent: bool = False) -> None:
        if not 0 < owner < 1 << 64:
            raise ValueError(f"owner of a device must be a nonzero 64-bit number (got {owner:#x})")
        if npages <= 0:
            raise ValueError(f"a device must have pages (got {npages})")
        self.memory = memory
        self.owner = owner
        self.npages = npages
        self.coherent = coherent
        self.migrated: Callable[[int], None] | None = None
        self.first_pfn = memory.reserve_device(npages)
        self._next = 0
        self._freed: list[int] = []
        memory.devices.append(self)
        if not coherent:
            for mm in memory.spaces:
                self.tell(mm)

    def tell(self, mm: AddressSpace) -> None:
        """Let walks of a space know whose the PFNs are."""
        row = np.array([[self.first_pfn, self.first_pfn + self.npages, self.owner]], dtype=np.uint64)
        known = mm.device_private
        if not (known[:, 0] == row[0, 0]).any():
            table = np.concatenate((known, row))
            mm.device_private = table[np.argsort(table[:, 0])]

    @property
    def used(self) -> int:
        """Pages that processes own."""
        return self._next - len(self._freed)

    def alloc_page(self) -> int | None:
        """Return a free PFN of the device, with one reference, or None."""
        if self._freed:
            pfn = self._freed.pop()
        elif self._next < self.npages:
            pfn = self.first_pfn + self._next
            self._next += 1
        else:
            return None
        self.memory.pages.fill(pfn, 1, flags=PG_DEVICE | PG_ANON, order=0, mapcount=0, content=0)
        self.memory.pages.get(pfn)
        return pfn

    def page_free(self, pfn: int) -> None:
        """Take a page back (dev_pagemap_ops.page_free); called when its last reference is dropped."""
        self._freed.append(pfn)
