"""The memory that a device works on: areas of address spaces, and what the device may reach of them.

A page has a number, its place in all areas one after the other, so that compiled code needs one array
and no search.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuhmm.mirror.page_table import DPT_VALID
from gpuhmm.mm.tables import Words

#: What a driver reserves, maps and migrates together at most: the span of a PMD, a VA block of UVM.
BLOCK_SHIFT = 21

#: An entry that lets every access through because its fault was cancelled: there is no page.
DPT_CANCELLED = np.uint64(1 << 60)

#: Where the space begins in the keys of :func:`place_keys`: above the 44 bits of a page's number.
_SPACE_SHIFT = np.uint64(48)

#: Pages that all areas may have together: 1 TiB of address space, 2 GiB of entries.
MAX_PAGES = 1 << 28


def place_keys(space: npt.NDArray[np.uint16], va: Words, shift: int = 12) -> Words:
    """Return a number for each address, alike and in order as space and ``va >> shift`` are: uint64[n]."""
    return (space.astype(np.uint64) << _SPACE_SHIFT) | (va >> np.uint64(shift))


@dataclass(frozen=True)
class Area:
    """Pages ``[start, end)``, in bytes, of address space number ``space``."""

    space: int
    start: int
    end: int

    @property
    def npages(self) -> int:
        """Pages of 4 KiB in the area."""
        return (self.end - self.start) >> 12


class DeviceAreas:
    """Areas with the page table of the device over them.

    ``entries`` is uint64[npages], by page number: a PFN and the DPT_* bits of
    :mod:`gpuhmm.mirror.page_table`, 0 where the device faults.  ``starts``, ``ends`` and ``spaces`` are
    the areas as columns, ``firsts`` (int64[n + 1]) the number of the first page of each.

    Areas are given sorted by space and address; ValueError for areas that overlap or are out of order, that
    are empty or unaligned, and for more than MAX_PAGES pages.
    """

    def __init__(self, areas: Sequence[Area]) -> None:
        _check(areas)
        self.areas = tuple(areas)
        self.starts = np.array([area.start for area in areas], dtype=np.uint64)
        self.ends = np.array([area.end for area in areas], dtype=np.uint64)
        self.spaces = np.array([area.space for area in areas], dtype=np.uint16)
        self._ends = [(area.space, area.end) for area in areas]
        pages = np.array([area.npages for area in areas], dtype=np.int64)
        self.firsts = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(pages)))
        self.npages = int(self.firsts[-1])
        self.entries: Words = np.zeros(self.npages, dtype=np.uint64)

    @classmethod
    def around(cls, space: npt.NDArray[np.uint16], va: Words) -> DeviceAreas:
        """Return the areas of 2 MiB blocks that hold the given addresses, neighbours joined."""
        keys = np.unique(place_keys(space, va, BLOCK_SHIFT))
        breaks = np.flatnonzero(np.diff(keys) != 1) + 1
        areas = []
        for run in np.split(keys, breaks) if len(keys) else []:
            low, high = int(run[0]), int(run[-1])
            number, block = divmod(low, 1 << int(_SPACE_SHIFT))
            start = block << BLOCK_SHIFT
            areas.append(Area(number, start, start + (len(run) << BLOCK_SHIFT)))
            assert high - low + 1 == len(run)
        return cls(areas)

    def place(self, space: int, va: int) -> int:
        """Return the number of the page at ``va``, or -1 if no area holds it."""
        for _, first, _past in self.pieces(space, va, va + 1):
            return first
        return -1

    def places(self, space: npt.NDArray[np.uint16], va: Words) -> npt.NDArray[np.int64]:
        """Return the number of each page, -1 where no area holds it: int64[n]."""
        if not len(self.areas):
            return np.full(len(va), -1, dtype=np.int64)
        order = place_keys(self.spaces, self.starts)
        at = np.maximum(np.searchsorted(order, place_keys(space, va), side="right") - 1, 0)
        inside = (self.spaces[at] == space) & (self.starts[at] <= va) & (va < self.ends[at])
        offsets = ((va - np.where(inside, self.starts[at], va)) >> np.uint64(12)).astype(np.int64)
        return np.where(inside, self.firsts[at] + offsets, -1)

    def addresses(self, places: npt.NDArray[np.int64]) -> Words:
        """Return the address of each page number: uint64[n] bytes."""
        at = np.searchsorted(self.firsts, places, side="right") - 1
        return self.starts[at] + ((places - self.firsts[at]).astype(np.uint64) << np.uint64(12))

    def pieces(self, space: int, start: int, end: int) -> list[tuple[int, int, int]]:
        """Return what the areas hold of ``[start, end)``: (address, first page number, past the last)."""
        found = []
        # The first area that ends beyond the start: areas lie apart, so that their ends are in order too.
        for index in range(bisect_right(self._ends, (space, start)), len(self.areas)):
            area = self.areas[index]
            low, high = max(start, area.start), min(end, area.end)
            if area.space != space or low >= high:
                break
            first = int(self.firsts[index]) + ((low - area.start) >> 12)
            found.append((low, first, first + ((high - low) >> 12)))
        return found

    def erase(self, space: int, start: int, end: int) -> int:
        """Take the entries of ``[start, end)`` from the device; return how many there were.

        Those of cancelled faults stay: their accesses have ended, whatever becomes of the memory.
        """
        count = 0
        for _, first, past in self.pieces(space, start, end):
            entries = self.entries[first:past]
            held = (entries & (DPT_VALID | DPT_CANCELLED)) == DPT_VALID
            count += int(np.count_nonzero(held))
            entries[held] = 0
        return count


def _check(areas: Sequence[Area]) -> None:
    before: Area | None = None
    for number, area in enumerate(areas):
        if area.start % 4096 or area.end % 4096 or not 0 <= area.start < area.end <= 1 << 57:
            raise ValueError(
                f"area {number} must be aligned, not empty, below 2^57 (got {area.start:#x}, {area.end:#x})"
            )
        if not 0 <= area.space < 1 << 16:
            raise ValueError(f"the space of area {number} must be below 65536 (got {area.space})")
        if before is not None and (area.space, area.start) < (before.space, before.end):
            raise ValueError(f"areas must be sorted and apart (area {number} begins at {area.start:#x})")
        before = area
    if sum(area.npages for area in areas) > MAX_PAGES:
        raise ValueError(
            f"areas must have at most {MAX_PAGES} pages together (got {sum(area.npages for area in areas)})"
        )
