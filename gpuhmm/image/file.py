"""An image of physical memory in a file: segments of addresses, and where their bytes lie.

Nothing is read but what is asked for.  The file is read through the page cache with ``pread`` and
not mapped: of a mapped file that somebody shortens meanwhile a page that is gone kills the process,
where a read only comes back short.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.errors import ImageError, MissingMemoryError
from gpuhmm.image.source import PAGE, MemorySource
from gpuhmm.mm.tables import Words
from gpuhmm.mm.x86 import MAX_PFN

#: Pages that one read of a scan takes: 16 MiB.
_SCAN_PAGES = 4096
#: Pages that one read of neighbouring tables takes at most.
_MAX_BATCH = 1 << 15
#: The offset of memory that is zeros without lying in the file, more than a file can have.
ZEROS = 1 << 63


@dataclass(frozen=True, order=True)
class Segment:
    """``size`` bytes of physical memory at ``address``, at ``offset`` in the file; zeros from ZEROS on."""

    address: int
    size: int
    offset: int


@dataclass
class ImageFile(MemorySource):
    """An opened image.

    ``format`` names what was found, ``truncated`` counts the bytes that the file's own headers
    promise and that it lacks.  Segments are sorted and disjoint.  ``processors`` and ``paging_levels`` are
    from the notes of QEMU.
    """

    path: str
    fd: int
    format: str
    segments: list[Segment]
    truncated: int = 0
    processors: tuple[int, ...] = ()
    paging_levels: int | None = None
    notes: list[str] = field(default_factory=list)
    vmcoreinfo: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""

    def __post_init__(self) -> None:
        if not self.segments:
            raise ImageError(f"{self.path} ({self.format}) must hold physical memory (got none)")
        for left, right in pairwise(self.segments):
            if left.address + left.size > right.address:
                raise ImageError(
                    f"{self.path} ({self.format}): segments must not overlap "
                    f"(got {left.address:#x} + {left.size:#x} and {right.address:#x})"
                )
        last = self.segments[-1]
        if last.address + last.size > MAX_PFN << 12:
            raise ImageError(
                f"{self.path} ({self.format}): physical addresses must lie below 2^52 "
                f"(got up to {last.address + last.size:#x})"
            )
        columns = np.array([(s.address, s.size, s.offset) for s in self.segments], dtype=np.uint64)
        self._starts, self._sizes, self._offsets = np.ascontiguousarray(columns.T)

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Bytes of physical memory in the image."""
        return sum(segment.size for segment in self.segments)

    @property
    def cr3s(self) -> tuple[int, ...]:
        """The CR3 of each processor, from the notes of QEMU."""
        return self.processors

    @property
    def levels(self) -> int | None:
        """4 or 5, from VMCOREINFO or from CR4 in the notes of QEMU."""
        return self.said_levels or self.paging_levels

    def describe(self) -> dict[str, Any]:
        """Return path, format, sizes in bytes and notes."""
        return {
            "memory": "image",
            "path": self.path,
            "format": self.format,
            "bytes": self.size,
            "segments": len(self.segments),
            "truncated_bytes": self.truncated,
            "notes": list(self.notes),
        }

    def contains(self, addresses: Words) -> npt.NDArray[np.bool_]:
        """Return which of ``addresses``, uint64[n], lie in the image: bool[n]."""
        at = np.searchsorted(self._starts, addresses, side="right")
        inside = at > 0
        at = np.maximum(at, 1) - 1
        below = np.where(inside, addresses - np.where(inside, self._starts[at], 0), 0)
        return inside & (below < self._sizes[at])

    def read(self, address: int, size: int) -> bytes:
        """Return the ``size`` bytes at ``address``.  MissingMemoryError where any of them is missing."""
        if size < 0 or address < 0:
            raise ValueError(f"address and size must not be negative (got {address:#x}, {size:#x})")
        parts = []
        at, end = address, address + size
        while at < end:
            segment = self._segment(at)
            if segment is None:
                raise MissingMemoryError(f"physical address {at:#x} is not in {self.path}")
            count = min(end, segment.address + segment.size) - at
            if segment.offset >= ZEROS:
                part = bytes(count)
            else:
                part = os.pread(self.fd, count, segment.offset + at - segment.address)
            if not part:
                raise MissingMemoryError(f"{self.path} ends before physical address {at:#x}")
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def read_pages(self, pfns: Words) -> tuple[Words, npt.NDArray[np.bool_]]:
        """Return pages as entries, uint64[n, 512], and whether each is there whole, bool[n]."""
        order = np.argsort(pfns, kind="stable")
        ascending = pfns[order]
        pages = np.zeros((len(pfns), 512), dtype=np.uint64)
        there = np.zeros(len(pfns), dtype=np.bool_)
        addresses = ascending << np.uint64(12)
        at = np.maximum(np.searchsorted(self._starts, addresses, side="right"), 1) - 1
        first = np.where(addresses >= self._starts[at], addresses - self._starts[at], self._sizes[at])
        whole = (self._sizes[at] >= PAGE) & (first <= self._sizes[at] - np.minimum(self._sizes[at], PAGE))
        offsets = (self._offsets[at] + first).astype(np.int64)
        follows = (np.diff(offsets) == PAGE) & (np.diff(at) == 0) & whole[1:] & whole[:-1]
        cuts = np.concatenate(([0], np.flatnonzero(~follows) + 1, [len(pfns)])).tolist()
        for low, high in pairwise(cuts):
            if low == high:
                continue
            if not whole[low]:
                for i in range(low, high):
                    there[i] = self._piecewise(int(addresses[i]), pages[i])
                continue
            if self._offsets[at[low]] >= ZEROS:
                there[low:high] = True
                continue
            for a in range(low, high, _MAX_BATCH):
                b = min(high, a + _MAX_BATCH)
                full = self._fill(pages[a:b], int(offsets[a])) // PAGE
                there[a : a + full] = True
                pages[a + full : b] = 0
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        if (np.diff(order) == 1).all():
            return pages, there
        return pages[back], there[back]

    def scan(self) -> Iterator[tuple[int, Words]]:
        """Yield all whole pages by address, 16 MiB at a time; holes of a sparse file are passed over."""
        for segment in (s for s in self.segments if s.offset < ZEROS):
            skip = -segment.address % PAGE
            for low, high in self._data(segment.offset + skip, segment.offset + segment.size):
                # The extents of a file need not begin where a page of memory does.
                low -= (low - segment.offset - skip) % PAGE
                while low + PAGE <= high:
                    count = min(_SCAN_PAGES, (high - low) // PAGE)
                    pages = np.zeros((count, 512), dtype=np.uint64)
                    full = self._fill(pages, low) // PAGE
                    if full:
                        yield (segment.address + low - segment.offset) // PAGE, pages[:full]
                    if full < count:
                        break
                    low += count * PAGE

    def _data(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the stretches of ``[start, end)`` of the file that are no holes, end rounded up to pages."""
        while start < end:
            try:
                low = os.lseek(self.fd, start, os.SEEK_DATA)
                high = os.lseek(self.fd, low, os.SEEK_HOLE)
            except OSError:
                return  # nothing but a hole up to the end
            if low >= end:
                return
            yield low, min(end, high + -(high - start) % PAGE)
            start = max(high, low + 1)

    def _segment(self, address: int) -> Segment | None:
        at = int(np.searchsorted(self._starts, np.uint64(address), side="right")) - 1
        if at < 0:
            return None
        segment = self.segments[at]
        return segment if address < segment.address + segment.size else None

    def _piecewise(self, address: int, page: Words) -> bool:
        """Read a page that no one segment holds; False where a part of it is missing."""
        try:
            page[:] = np.frombuffer(self.read(address, PAGE), dtype="<u8")
        except MissingMemoryError:
            return False
        return True

    def _fill(self, pages: Words, offset: int) -> int:
        """Read into ``pages`` from ``offset`` on; return how many bytes there were."""
        buffer = pages.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(buffer):
            got = os.preadv(self.fd, [buffer[done:]], offset + done)
            if not got:
                break
            done += got
        return done


def disjoint(segments: Iterable[Segment]) -> list[Segment]:
    """Return segments sorted by address; where some overlap, the first one keeps what both hold."""
    made: list[Segment] = []
    top = 0
    for segment in sorted(segments):
        cut = max(top - segment.address, 0)
        if cut < segment.size:
            made.append(Segment(segment.address + cut, segment.size - cut, segment.offset + cut))
            top = segment.address + segment.size
    return made
