"""Compressed kdumps, plain and flattened, as makedumpfile and QEMU's ``dump-guest-memory -z`` write them.

drgn reads them; how far memory goes is read here.

Source: IMPLEMENTATION of makedumpfile 1.7.2 (disk_dump_header, kdump_sub_header, version 6).
"""

from __future__ import annotations

import contextlib
import importlib.util
import struct
import sys
from collections.abc import Iterator
from subprocess import PIPE, Popen
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.errors import ImageError, MissingMemoryError
from gpuhmm.image import drgn_child
from gpuhmm.image.elf_core import parse_vmcoreinfo
from gpuhmm.image.read_at import ReadAt
from gpuhmm.image.reader import ReaderSource
from gpuhmm.image.source import PAGE
from gpuhmm.mm.tables import Words

#: A flattened file: its header's size, what stands before each piece, and how many pieces are looked at.
_FLATTENED, _PIECE, _MAX_PIECES = 4096, struct.Struct(">qq"), 1 << 24
#: Offsets in the headers: machine, then block_size, sub_hdr_size, bitmap_blocks and max_mapnr, max_mapnr_64.
_MACHINE, _BLOCKS, _MAX_MAPNR_64 = 12 + 4 * 65, 428, PAGE + 96
#: Bytes of headers and bitmaps: enough for 8 TiB.
_MAX_PLAIN = 1 << 29
#: Pages that one read of a scan takes: 1 MiB.
_SCAN_PAGES = 256


class KdumpSource(ReaderSource):
    """A compressed kdump, read through drgn.  ImageError where drgn is missing or does not take it."""

    def __init__(self, path: str, read: ReadAt, size: int) -> None:
        if importlib.util.find_spec("drgn") is None:
            raise ImageError(
                f"{path} is a compressed kdump, which is read through drgn: pip install drgn (or, of a guest "
                "that still runs, write an ELF core: dump-guest-memory without -z, -l or -s)"
            )
        self.path = path
        self._end, self._held = _pages(read, size, path)
        # -P: what lies beside the script is no module of its own.
        command = [sys.executable, "-P", drgn_child.__file__, path]
        self._child = Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        super().__init__(self.read)
        self.vmcoreinfo = parse_vmcoreinfo(self._answer())

    def close(self) -> None:
        """End the process that reads."""
        self._child.kill()
        self._child.communicate()

    def __del__(self) -> None:
        if hasattr(self, "_child"):
            self.close()

    def read(self, address: int, size: int) -> bytes:
        """Return the ``size`` bytes at ``address``.

        MissingMemoryError where any of them is missing, ImageError if drgn fails on the file.
        """
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._child.stdin.write(struct.pack("<QQ", address, size))
            self._child.stdin.flush()
        data = self._answer()
        if len(data) != size:
            raise MissingMemoryError(f"physical address {address:#x} is not in {self.path}")
        return data

    def _answer(self) -> bytes:
        """Return what the child says next."""
        assert self._child.stdout is not None
        length = int.from_bytes(self._child.stdout.read(8).ljust(8, b"\xff"), "little", signed=True)
        if length >= 0 and len(data := self._child.stdout.read(length)) == length:
            return data
        said = self._child.communicate()[1].decode(errors="replace").strip().rsplit("\n", 1)[-1]
        status = f"{said} (exit {self._child.returncode})"
        raise ImageError(f"{self.path} is a compressed kdump that drgn does not read: {status}")

    def describe(self) -> dict[str, Any]:
        """Return path, format, and the end of memory in bytes."""
        return {"memory": "image", "path": self.path, "format": "kdump", "end": self._end * PAGE}

    def scan(self) -> Iterator[tuple[int, Words]]:
        """Yield all pages that the dump holds, by address, up to 1 MiB at a time."""
        for first in range(0, self._end, _SCAN_PAGES):
            held = np.unpackbits(self._held[first // 8 : (first + _SCAN_PAGES) // 8], bitorder="little")
            edges = np.flatnonzero(np.diff(held.view(np.int8), prepend=0, append=0))
            for low, past in edges.reshape(-1, 2).tolist():
                yield from self._scan(first + low, past - low)

    def _scan(self, first: int, count: int) -> Iterator[tuple[int, Words]]:
        try:
            yield first, np.frombuffer(self.read(first * PAGE, count * PAGE), dtype="<u8").reshape(-1, 512)
        except MissingMemoryError:
            if count > 1:  # what cannot be read lies in one of the halves
                yield from self._scan(first, count // 2)
                yield from self._scan(first + count // 2, count - count // 2)


def _pages(read: ReadAt, size: int, path: str) -> tuple[int, npt.NDArray[np.uint8]]:
    """Return the end of memory in pages, and the bitmap of the pages that the dump holds."""
    header = _plain(read, 2 * PAGE)
    if len(header) < 2 * PAGE:
        raise ImageError(f"{path} ends within its headers")
    machine = header[_MACHINE : _MACHINE + 65].rstrip(b"\0").decode(errors="replace")
    block, sub_header, bitmaps, pages = struct.unpack_from("<4I", header, _BLOCKS)
    pages = max(pages, *struct.unpack_from("<Q", header, _MAX_MAPNR_64))
    begin, past = (1 + sub_header + bitmaps // 2) * PAGE, (1 + sub_header + bitmaps) * PAGE
    fits = past <= min(size, _MAX_PLAIN) and pages <= 8 * (past - begin)
    if machine not in ("", "x86_64") or block != PAGE or not fits:
        raise ImageError(
            f"{path}: a kdump must be of x86_64, in blocks of {PAGE} bytes, and have a bit for each page "
            f"(got {machine!r}, {block} bytes, {pages} pages, {bitmaps} blocks of bits, {size} bytes in all)"
        )
    return pages, np.frombuffer(_plain(read, past)[begin:], dtype=np.uint8)


def _plain(read: ReadAt, past: int) -> bytes:
    """Return the bytes before ``past``; in a flattened file they lie in pieces that say where they belong."""
    if read(0, 5) == b"KDUMP":
        return read(0, past)
    made, left = bytearray(past), past
    at = _FLATTENED
    for _ in range(_MAX_PIECES):
        piece = read(at, _PIECE.size)
        offset, size = _PIECE.unpack(piece) if len(piece) == _PIECE.size else (-1, 0)
        if left <= 0 or offset < 0 or size <= 0:
            break
        at += _PIECE.size
        part = read(at, max(min(size, past - offset), 0))
        made[offset : offset + len(part)] = part
        left -= len(part)
        at += size
    return bytes(made)
