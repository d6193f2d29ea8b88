"""Which format an image has, and opening it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gpuhmm.errors import ImageError
from gpuhmm.image import elf_core, lime
from gpuhmm.image.file import ImageFile, Segment
from gpuhmm.image.kdump import KdumpSource
from gpuhmm.image.known import HEAD, known_format
from gpuhmm.image.read_at import ReadAt
from gpuhmm.image.reader import ReaderSource
from gpuhmm.image.source import MemorySource

#: The names that ``open_image`` takes; ``auto`` looks for a magic.
FORMATS = ("auto", "raw", "elf", "lime", "kdump")

#: No PC has memory here: writes to it are interrupts (Intel SDM volume 3, chapter 11.11).  The page before
#: it is that of the local APIC.
_NEVER_MEMORY = 0xFEE0_1000
_NEVER_MEMORY_END = 0xFEF0_0000

_HOLE = (
    "Firecracker, Cloud Hypervisor, VMware (.vmem) and QEMU (memory-backend-file) cut the hole below 4 GiB "
    "out of their files; of such an image tell the layout: --segments start:length@offset,..."
)


def open_image(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    segments: Sequence[Segment] = (),
    sme_mask: int | None = None,
    upright_protnone: bool = False,
) -> MemorySource:
    """Open an image of physical memory.

    ``format`` is ``raw`` (the offset is the physical address, or ``segments`` say where what lies), ``elf``
    (a core of QEMU's ``dump-guest-memory``, or /proc/vmcore), ``lime``, ``kdump`` (compressed; read through
    drgn), or ``auto``: what a magic says, else raw.  ``sme_mask`` is AMD's encryption bit, where the
    image does not say it; ``upright_protnone`` is for kernels before 4.18.1.  The file may be sparse, and
    shorter than its headers say.  ImageError for anything else: files of other kinds are named.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)} (got {format!r})")
    if sme_mask is not None and (sme_mask & (sme_mask - 1) or not 0 <= sme_mask < 1 << 52):
        raise ValueError(f"sme_mask must be one bit below 2^52, or 0 (got {sme_mask:#x})")
    name = os.fspath(path)
    _check_kind(name, os.stat(name))
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check_kind(name, os.fstat(fd))
        made = _made(fd, name, format, segments)
    except BaseException:
        os.close(fd)
        raise
    memory = made()  # from here on the image closes the file, whatever happens
    memory.sme_mask = _said_sme_mask(memory) if sme_mask is None else sme_mask
    memory.upright_protnone = upright_protnone
    return memory


def _check_kind(name: str, status: os.stat_result) -> None:
    """Let pass what can be read at any place and never blocks."""
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        raise ImageError(f"{name} must be a file (got {stat.filemode(status.st_mode)})")


def _made(fd: int, name: str, format: str, segments: Sequence[Segment]) -> Callable[[], MemorySource]:
    """Return what makes the image of an opened file."""
    size = os.lseek(fd, 0, os.SEEK_END)
    if not size:
        raise ImageError(f"{name} must hold physical memory (got an empty file)")
    read = ReadAt(fd)
    found = format
    if format == "auto":
        known = known_format(read(0, HEAD))
        if known is not None and not known.reader:
            raise ImageError(f"{name} is {known.what}: {known.advice}")
        found = "raw" if known is None else known.reader
    if segments and found != "raw":
        raise ImageError(f"{name}: segments are told for a raw image only (got one of format {found})")
    if found == "kdump":
        source = KdumpSource(name, read, size)
        os.close(fd)  # drgn has opened it itself
        return lambda: source
    if found == "elf":
        core = elf_core.parse(read, size, name)
        return partial(ImageFile, name, fd, "elf", **vars(core))
    if found == "lime":
        kept, truncated = lime.parse(read, size, name)
        notes = [f"the file lacks {truncated} bytes of what its headers promise"] if truncated else []
        return partial(ImageFile, name, fd, "lime", kept, truncated, notes=notes)
    return _raw(fd, name, read, size, segments)


def _raw(fd: int, name: str, read: ReadAt, size: int, segments: Sequence[Segment]) -> Callable[[], ImageFile]:
    """Return what makes a raw image: all of the file from address 0 on, or as ``segments`` say."""
    if not segments:
        content = read(_NEVER_MEMORY, _NEVER_MEMORY_END - _NEVER_MEMORY)
        notes = []
        if len(set(content)) > 1:  # padding has one value
            notes = [f"a hole was cut out of this image: it has content at {_NEVER_MEMORY:#x}.  {_HOLE}"]
        whole = [Segment(0, size, 0)]
        return partial(ImageFile, name, fd, "raw", whole, notes=notes, hint=f".  {_HOLE}")
    kept = [Segment(s.address, min(s.size, size - s.offset), s.offset) for s in segments if s.offset < size]
    lacking = sum(s.size for s in segments) - sum(s.size for s in kept)
    notes = [f"the file lacks {lacking} bytes of what the segments promise"] if lacking else []
    return partial(ImageFile, name, fd, "raw", sorted(kept), lacking, notes=notes)


def _said_sme_mask(memory: MemorySource) -> int:
    """Return what VMCOREINFO says, 0 where it says nothing that can be."""
    text = memory.vmcoreinfo.get("NUMBER(sme_mask)", "")
    mask = int(text) if text.isdecimal() and len(text) < 20 else 0
    return mask if mask < 1 << 52 and not mask & (mask - 1) else 0


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
