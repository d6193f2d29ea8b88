"""Device memory of the machine: allocations, and which of their bytes were written."""

from __future__ import annotations

import ctypes
import threading
from bisect import bisect_right
from collections import deque
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

    def written_part(self, address: int, size: int) -> np.ndarray:
        """Return ``written`` of these bytes, as a view."""
        return self.written[address - self.address :][:size]

    def write(self, address: int, data: bytes | int, size: int) -> None:
        """Store bytes, or what lies at a host address."""
        ctypes.memmove(address, data, size)
        self.written_part(address, size)[:] = 1


class Memory:
    """All allocations that live.  Freed memory stays as long as queued work knows its Allocation."""

    def __init__(self) -> None:
        self._allocations: dict[int, Allocation] = {}
        self._addresses: list[int] = []  # in order
        self._freed: deque[int] = deque()  # finalizers run anywhere, also in the midst of an allocation
        self._lock = threading.Lock()

    def allocate(self, size: int) -> Allocation:
        """Return a new allocation of which nothing was written; ValueError for no bytes."""
        if size <= 0:
            raise ValueError(f"an allocation must have a byte at least (got {size})")
        buffer = np.full(size + _ALIGNMENT, _POISON, dtype=np.uint8)
        address = -(-buffer.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        made = Allocation(address, size, np.zeros(size, dtype=np.uint8), buffer)
        with self._lock:
            self._forget_freed()
            self._allocations[address] = made
            self._addresses.insert(bisect_right(self._addresses, address), address)
        return made

    def free(self, address: int) -> None:
        """Forget an allocation; ValueError for an address at which none begins."""
        if address not in self._allocations or address in self._freed:
            raise ValueError(f"what is freed must have been allocated (got {address:#x})")
        self._freed.append(address)

    def used(self) -> int:
        """Return the bytes of all allocations."""
        with self._lock:
            self._forget_freed()
            return sum(one.size for one in self._allocations.values())

    def find(self, address: int, size: int, what: str) -> Allocation:
        """Return the allocation that ``[address, address + size)`` lies in; IndexError if none does."""
        with self._lock:
            self._forget_freed()
            at = bisect_right(self._addresses, address) - 1
            if at >= 0:
                found = self._allocations[self._addresses[at]]
                if address + size <= found.address + found.size:
                    return found
        raise IndexError(f"{what}: {size} bytes at {address:#x} must lie in one allocation")

    def _forget_freed(self) -> None:
        while self._freed:
            address = self._freed.popleft()
            del self._allocations[address]
            self._addresses.remove(address)
