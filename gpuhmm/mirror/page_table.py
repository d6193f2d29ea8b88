"""The page table of a device that mirrors an address space: what it may reach without asking.

Source: lib/test_hmm.c:struct dmirror, the array ``pt`` and its tags (v6.1).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpuhmm.mm.tables import Words

#: The device may read the page.
DPT_VALID = np.uint64(1 << 63)
#: It may write the page, too (DPT_XA_TAG_WRITE).
DPT_WRITE = np.uint64(1 << 62)
#: The page is the device's alone, for atomic operations (DPT_XA_TAG_ATOMIC); never with DPT_WRITE.
DPT_ATOMIC = np.uint64(1 << 61)
DPT_PFN = np.uint64((1 << 52) - 1)

_SLOT_PAGES = 512


class DevicePageTable:
    """An entry a page: the PFN and DPT_* bits, 0 where the device must ask first.

    It takes no reference to pages and no lock: the driver's lock is held by whoever calls.
    """

    def __init__(self) -> None:
        self._slots: dict[int, Words] = {}  # by 2 MiB of address space: uint64[512]

    def __len__(self) -> int:
        """Pages that the device may reach."""
        return sum(int(np.count_nonzero(slot)) for slot in list(self._slots.values()))

    def load(self, start: int, end: int) -> Words:
        """Return the entries of ``[start, end)`` bytes: uint64[npages], a copy."""
        entries = np.zeros((end - start) >> 12, dtype=np.uint64)
        for number, inside, here in _pieces(start, end):
            slot = self._slots.get(number)
            if slot is not None:
                entries[here] = slot[inside]
        return entries

    def store(self, start: int, entries: Words) -> None:
        """Set the entries of the pages from ``start`` on: uint64[n]."""
        for number, inside, here in _pieces(start, start + (len(entries) << 12)):
            slot = self._slots.get(number)
            if slot is None:
                slot = self._slots[number] = np.zeros(_SLOT_PAGES, dtype=np.uint64)
            slot[inside] = entries[here]

    def erase(self, start: int, end: int, pfns: range | None = None) -> int:
        """Clear the entries of ``[start, end)`` bytes, however long; return how many there were.

        With ``pfns`` only those that point into it are meant.
        """
        first, last = start >> 21, (end - 1) >> 21
        if last - first >= len(self._slots):
            numbers = sorted(number for number in self._slots if first <= number <= last)
        else:
            numbers = [number for number in range(first, last + 1) if number in self._slots]
        erased = 0
        for number in numbers:
            low = max(start - (number << 21), 0) >> 12
            high = (min(end - (number << 21), 1 << 21) + 4095) >> 12
            piece = self._slots[number][low:high]
            gone = piece != 0
            if pfns is not None:
                pointed = piece & DPT_PFN
                gone &= (pointed >= np.uint64(pfns.start)) & (pointed < np.uint64(pfns.stop))
            erased += int(np.count_nonzero(gone))
            piece[gone] = 0
            if not self._slots[number].any():
                del self._slots[number]
        return erased


def _pieces(start: int, end: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield each 2 MiB slot of ``[start, end)``: its number, its pages, and their place in the range."""
    va = start
    while va < end:
        past = min(((va >> 21) + 1) << 21, end)
        low = va >> 12 & (_SLOT_PAGES - 1)
        count = (past - va) >> 12
        here = (va - start) >> 12
        yield va >> 21, slice(low, low + count), slice(here, here + count)
        va = past
