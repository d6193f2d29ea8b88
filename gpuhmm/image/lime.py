"""LiME images: each range of physical memory behind a header of its own.

Source: doc/README.md of LiME (lime_mem_range_header, version 1).
"""

from __future__ import annotations

import struct

from gpuhmm.errors import ImageError
from gpuhmm.image.file import Segment, disjoint
from gpuhmm.image.read_at import ReadAt

#: The first bytes of the file: 0x4C694D45, little-endian.
MAGIC = b"EMiL"

#: Magic, version, first and last address, reserved.
_HEADER = struct.Struct("<4sIQQ8x")
_MAX_RANGES = 1 << 20


def parse(read: ReadAt, size: int, path: str) -> tuple[list[Segment], int]:
    """Return the segments of a file of ``size`` bytes, and how many bytes its headers promise in vain.

    ImageError for a header that is none.
    """
    segments: list[Segment] = []
    at = truncated = 0
    while at < size:
        header = read(at, _HEADER.size)
        if len(header) < _HEADER.size:
            truncated += _HEADER.size - len(header)
            break
        magic, version, first, last = _HEADER.unpack(header)
        if magic != MAGIC or version != 1 or last < first or len(segments) > _MAX_RANGES:
            raise ImageError(
                f"{path}: a LiME header must say version 1 and an ascending range "
                f"(got {magic!r}, version {version}, {first:#x} to {last:#x} at offset {at:#x})"
            )
        at += _HEADER.size
        wanted = last - first + 1
        there = min(wanted, size - at)
        truncated += wanted - there
        if there:
            segments.append(Segment(first, there, at))
        at += wanted
    return disjoint(segments), truncated
