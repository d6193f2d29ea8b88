"""Physical memory behind ``read(address, size)``: drgn, MemProcFS, a debugger, a volatility3 layer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpuhmm.errors import MissingMemoryError
from gpuhmm.image.source import PAGE, MemorySource
from gpuhmm.mm.tables import Words


class Reads(Protocol):
    """What is asked of the object: bytes of physical memory."""

    def read(self, address: int, size: int, /) -> bytes:
        """Return ``size`` bytes at ``address``."""


#: What an object may raise where it has no memory; other errors are its own and go through.
_ABSENT: tuple[type[BaseException], ...] = (OSError, LookupError, ValueError, RuntimeError, EOFError)

#: Exceptions of libraries that are no subclass of those, if the library was imported.
_ABSENT_BY_NAME = (
    ("drgn", "FaultError"),
    ("volatility3.framework.exceptions", "InvalidAddressException"),
)


class ReaderSource(MemorySource):
    """Any object with ``read(address, size)`` as physical memory, a page a call.

    Memory is missing where ``read`` raises OSError, LookupError, ValueError, RuntimeError or the
    library's own exception for it, or returns fewer bytes than asked for.  ``read`` may also be a
    function: ``ReaderSource(lambda address, size: prog.read(address, size, physical=True))``.
    """

    def __init__(self, source: Reads | Callable[[int, int], bytes]) -> None:
        read = getattr(source, "read", source)
        if not callable(read):
            raise TypeError(
                f"physical memory must have read(address, size) or be such a function "
                f"(got {type(source).__name__})"
            )
        self._read: Callable[[int, int], bytes] = read
        self._name = type(source).__name__
        self.reads = 0

    def read(self, address: int, size: int) -> bytes:
        """Return the ``size`` bytes at ``address``.  MissingMemoryError where any of them is missing."""
        self.reads += 1
        try:
            data = bytes(self._read(address, size))
        except _absent() as error:
            raise MissingMemoryError(f"physical address {address:#x} cannot be read: {error}") from error
        if len(data) != size:
            raise MissingMemoryError(
                f"physical address {address:#x} gave {len(data)} bytes where {size} were asked for"
            )
        return data

    def read_pages(self, pfns: Words) -> tuple[Words, npt.NDArray[np.bool_]]:
        """Return pages as entries, uint64[n, 512], and whether each is there, bool[n]."""
        pages = np.zeros((len(pfns), 512), dtype=np.uint64)
        there = np.zeros(len(pfns), dtype=np.bool_)
        for i, pfn in enumerate(pfns.tolist()):
            try:
                pages[i] = np.frombuffer(self.read(pfn << 12, PAGE), dtype="<u8")
            except MissingMemoryError:
                continue
            there[i] = True
        return pages, there

    def contains(self, addresses: Words) -> None:
        """Return None: what there is shows only when it is read."""
        return

    def describe(self) -> dict[str, Any]:
        """Return the name of the object's type."""
        return {"memory": "reader", "type": self._name}

    def scan(self) -> Iterator[tuple[int, Words]]:
        """NotImplementedError: what there is shows only when it is read."""
        raise NotImplementedError("an object with read(address, size) cannot be scanned: give its CR3")

    @property
    def cr3s(self) -> tuple[int, ...]:
        """Empty: nobody says."""
        return ()

    @property
    def levels(self) -> int | None:
        """4 or 5, where VMCOREINFO says them."""
        return self.said_levels


def _absent() -> tuple[type[BaseException], ...]:
    """Return what means that memory is missing; a library that nobody imported raises nothing."""
    found = [
        getattr(sys.modules[module], name)
        for module, name in _ABSENT_BY_NAME
        if hasattr(sys.modules.get(module), name)
    ]
    return (*_ABSENT, *found)
