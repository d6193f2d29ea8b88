"""Reading a file at an offset, as the parsers of headers do."""

from __future__ import annotations

import os


class ReadAt:
    """Reads an open file: ``read(offset, size) -> bytes``, fewer at the end and none beyond it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``."""
        if offset + size >= 1 << 63:
            return b""  # more than a file can have
        return os.pread(self._fd, size, offset)
