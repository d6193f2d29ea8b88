"""Which format an image has, and opening it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

from gpuhmm.errors import ImageError
from gpuhmm.image import elf_core, lime
from gpuhmm.image.file import ImageFile, Segment
from gpuhmm.image.read_at import ReadAt
from gpuhmm.image.reader import ReaderSource
from gpuhmm.image.source import MemorySource

#: The names that ``open_image`` takes; ``auto`` looks at the first bytes.
FORMATS = ("auto", "raw", "elf", "lime")

#: What is no plain image, by its first bytes, and what to do about it.
_OTHERS = {
    b"KDUMP   ": "a compressed kdump: write it with dump-guest-memory without -z, -l or -s",
    b"DISKDUMP": "a diskdump: convert it with makedumpfile -E",
    b"PAGEDU64": "a crash dump of Windows",
    b"PAGEDUMP": "a crash dump of Windows",
    b"AVML": "an AVML image with compression: convert it with avml-convert",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\xfd7zXZ\x00": "compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"QEVM": "a migration stream of QEMU: write the memory with dump-guest-memory",
}


def open_image(path: str | os.PathLike[str], *, format: str = "auto") -> ImageFile:
    """Open an image of physical memory.

    ``format`` is ``raw`` (the offset is the physical address), ``elf`` (a core of QEMU's
    ``dump-guest-memory``, or /proc/vmcore), ``lime``, or ``auto``: what the first bytes say, else raw.
    The file may be sparse, and shorter than its headers say.  ImageError for anything else.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)} (got {format!r})")
    name = os.fspath(path)
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = _parsed(fd, name, format)
    except BaseException:
        os.close(fd)
        raise
    return ImageFile(name, fd, *parts)  # from here on the image closes the file, whatever happens


class _Parts(NamedTuple):
    """What an :class:`ImageFile` is made of, besides path and file."""

    format: str
    segments: list[Segment]
    truncated: int = 0
    processors: tuple[int, ...] = ()
    paging_levels: int | None = None
    notes: list[str] = []  # noqa: RUF012  (never changed)
    vmcoreinfo: dict[str, str] = {}  # noqa: RUF012  (never changed)


def _parsed(fd: int, name: str, format: str) -> _Parts:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        raise ImageError(f"{name} must be a file (got {stat.filemode(status.st_mode)})")
    size = os.lseek(fd, 0, os.SEEK_END)
    if not size:
        raise ImageError(f"{name} must hold physical memory (got an empty file)")
    read = ReadAt(fd)
    head = read(0, 8)
    found = format
    if format == "auto":
        found = "elf" if head.startswith(elf_core.MAGIC) else "lime" if head.startswith(lime.MAGIC) else "raw"
        for magic, what in _OTHERS.items():
            if head.startswith(magic):
                raise ImageError(f"{name} is {what}")
    if found == "elf":
        core = elf_core.parse(read, size, name)
        return _Parts(
            "elf", core.segments, core.truncated, core.cr3s, core.levels, core.notes, core.vmcoreinfo
        )
    if found == "lime":
        segments, truncated = lime.parse(read, size, name)
        notes = [f"the file lacks {truncated} bytes of what its headers promise"] if truncated else []
        return _Parts("lime", segments, truncated, notes=notes)
    return _Parts("raw", [Segment(0, size, 0)], notes=[])


def as_source(source: Any) -> MemorySource:
    """Return ``source`` as physical memory.

    A :class:`MemorySource` is returned as it is, a path is opened, and any other object with
    ``read(address, size)`` is wrapped (:class:`ReaderSource`).  TypeError for anything else.
    """
    if isinstance(source, MemorySource):
        return source
    if isinstance(source, str | Path):
        return open_image(source)
    if callable(getattr(source, "read", None)):
        return ReaderSource(source)
    raise TypeError(
        "physical memory must be a path, a MemorySource or an object with read(address, size) "
        f"(got {type(source).__name__})"
    )
