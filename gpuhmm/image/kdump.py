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

from gpuhmm.errors import ImageError, MissingMemoryError
from gpuhmm.image import drgn_child
from gpuhmm.image.elf_core import parse_vmcoreinfo
from gpuhmm.image.read_at import ReadAt
from gpuhmm.image.reader import ReaderSource
from gpuhmm.image.source import PAGE
from gpuhmm.mm.tables import Words

#: Where a flattened file has the first bytes of the plain one: behind its header and that of the first piece.
_FLATTENED = 4096 + 16
#: Offsets in the headers: block_size and max_mapnr, and max_mapnr_64 behind the first block.
_BLOCK_SIZE, _MAX_MAPNR, _MAX_MAPNR_64 = 428, 440, 96
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
        self._end = _max_pfn(read, size, path)
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
            yield from self._scan(first, min(_SCAN_PAGES, self._end - first))

    def _scan(self, first: int, count: int) -> Iterator[tuple[int, Words]]:
        try:
            yield first, np.frombuffer(self.read(first * PAGE, count * PAGE), dtype="<u8").reshape(-1, 512)
        except MissingMemoryError:
            if count > 1:  # what is left out lies in one of the halves
                yield from self._scan(first, count // 2)
                yield from self._scan(first + count // 2, count - count // 2)


def _max_pfn(read: ReadAt, size: int, path: str) -> int:
    """Return the end of memory in pages.  ImageError if the file cannot hold a bit for each, twice."""
    header = read(0 if read(0, 5) == b"KDUMP" else _FLATTENED, 2 * PAGE).ljust(2 * PAGE, b"\0")
    block, pages = (struct.unpack_from("<I", header, at)[0] for at in (_BLOCK_SIZE, _MAX_MAPNR))
    pages = max(pages, *struct.unpack_from("<Q", header, PAGE + _MAX_MAPNR_64))
    if block != PAGE or pages > 4 * size:
        raise ImageError(
            f"{path} is a compressed kdump: blocks must have {PAGE} bytes, bitmaps a bit for each page "
            f"(got {block} bytes, {pages} pages in a file of {size} bytes)"
        )
    return int(pages)
