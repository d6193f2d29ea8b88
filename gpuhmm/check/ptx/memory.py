"""Device memory of the machine: allocations, and which of their bytes were written."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

#: Where cuMemAlloc's addresses begin.  Source: CUDA C++ Programming Guide 13.0, "Device Memory Accesses".
_ALIGNMENT = 256
#: Memory that nobody wrote, here and in simt.h.
_POISON = 0xA5
#: Bytes of a Shadow in simt.h, and of a sector of device memory.
SHADOW = 24
SECTOR = 32


@dataclass
class Allocation:
    """``size`` bytes at ``address``, and a byte for each that says whether it was written."""

    address: int
    size: int
    written: np.ndarray
    _buffer: np.ndarray = field(repr=False)
    _shadow: np.ndarray | None = field(default=None, repr=False)
    _touched: np.ndarray | None = field(default=None, repr=False)

    def shadow(self) -> int:
        """Return the address of what is known of each byte's last accesses, zeros at first."""
        if self._shadow is None:
            self._shadow = np.zeros(self.size * SHADOW, dtype=np.uint8)
        return int(self._shadow.ctypes.data)

    def touched(self) -> np.ndarray:
        """Return uint8[sectors]: 1 for one that was read, 2 for one that was written."""
        if self._touched is None:
            self._touched = np.zeros(-(-self.size // SECTOR), dtype=np.uint8)
        return self._touched


class Memory:
    """All allocations that live."""

    def __init__(self) -> None:
        self.allocations: dict[int, Allocation] = {}
        self._addresses: list[int] = []  # in order

    def allocate(self, size: int) -> Allocation:
        """Return a new allocation of which nothing was written; ValueError for no bytes."""
        if size <= 0:
            raise ValueError(f"an allocation must have a byte at least (got {size})")
        buffer = np.full(size + _ALIGNMENT, _POISON, dtype=np.uint8)
        address = -(-buffer.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        made = Allocation(address, size, np.zeros(size, dtype=np.uint8), buffer)
        self.allocations[address] = made
        self._addresses.insert(bisect_right(self._addresses, address), address)
        return made

    def free(self, address: int) -> None:
        """Forget an allocation; ValueError for an address at which none begins."""
        if address not in self.allocations:
            raise ValueError(f"what is freed must have been allocated (got {address:#x})")
        del self.allocations[address]
        self._addresses.remove(address)

    def find(self, address: int, size: int, what: str) -> Allocation:
        """Return the allocation that ``[address, address + size)`` lies in; IndexError if none does."""
        at = bisect_right(self._addresses, address) - 1
        if at >= 0:
            found = self.allocations[self._addresses[at]]
            if address + size <= found.address + found.size:
                return found
        raise IndexError(f"{what}: {size} bytes at {address:#x} must lie in one allocation")

    def write(self, address: int, data: bytes | int, size: int, what: str) -> None:
        """Store bytes, or what lies at a host address, in device memory."""
        inside = self.find(address, size, what)
        ctypes.memmove(address, data, size)
        inside.written[address - inside.address :][:size] = 1

    def unwritten(self, address: int, size: int, what: str) -> int:
        """Return how many of these bytes nobody wrote."""
        inside = self.find(address, size, what)
        return size - int(np.count_nonzero(inside.written[address - inside.address :][:size]))
