"""What the CPU does to the same memory meanwhile: invalidations at a rate, by the real operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gpuhmm.coalesce.areas import DeviceAreas
from gpuhmm.memory import (
    MADV_DONTNEED,
    Migration,
    madvise,
    migrate_pages_end,
    migrate_pages_start,
    mprotect,
    swap_out,
)
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.vma import VM_EXEC, VM_READ, VM_WRITE

_PROT = VM_READ | VM_WRITE | VM_EXEC

Operation = Callable[[AddressSpace, int, int], None]


def _dontneed(mm: AddressSpace, start: int, end: int) -> None:
    madvise(mm, start, end, MADV_DONTNEED)


def _protect(mm: AddressSpace, start: int, end: int) -> None:
    """Take the right to write away, and give every area back what it had; Linux joins what that split."""
    had = [
        (max(vma.start, start), min(vma.end, end), vma.flags & _PROT)
        for vma in mm.vmas.overlapping(start, end)
        if vma.flags & VM_WRITE
    ]
    for low, high, _ in had:
        mprotect(mm, low, high, VM_READ)
    for low, high, prot in had:
        mprotect(mm, low, high, prot)
        with mm.mmap_lock.write():
            mm.vmas.merge(low, high)


def _migrate(mm: AddressSpace, start: int, end: int) -> None:
    migration = migrate_pages_start(mm, start, end)
    if isinstance(migration, Migration):
        migrate_pages_end(migration)


def _swap_out(mm: AddressSpace, start: int, end: int) -> None:
    swap_out(mm, start, end)


#: What the CPU can do, by name.
OPERATIONS: dict[str, Operation] = {
    "dontneed": _dontneed,
    "protect": _protect,
    "migrate": _migrate,
    "swap-out": _swap_out,
}


@dataclass
class CpuActivity:
    """The CPU calls ``operation`` on ``npages`` pages, somewhere, ``per_ms`` times a millisecond on average.

    Places are drawn evenly from the device's areas, times between calls exponentially, from ``seed``.
    ValueError for an unknown operation, for a rate outside of (0, 1000] and for sizes below one page.
    """

    spaces: Sequence[AddressSpace]
    areas: DeviceAreas
    per_ms: float
    operation: str = "dontneed"
    npages: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise ValueError(f"operation must be one of {', '.join(OPERATIONS)} (got {self.operation!r})")
        if not 0 < self.per_ms <= 1000:
            raise ValueError(f"per_ms must be above 0 and at most 1000 (got {self.per_ms})")
        if self.npages < 1:
            raise ValueError(f"npages must be at least 1 (got {self.npages})")
        self._rng = np.random.default_rng(self.seed)
        self._next = self._wait()

    @property
    def due(self) -> int:
        """When the next call is due, in ns."""
        return math.ceil(self._next)

    def _wait(self) -> float:
        return float(self._rng.exponential(1e6 / self.per_ms))

    def run(self, now: int) -> list[tuple[int, int, int]]:
        """Do what is due at ``now`` ns; return (space, start, end) of each call, in bytes."""
        done = []
        while self._next <= now and self.areas.npages:
            self._next += self._wait()
            place = int(self._rng.integers(self.areas.npages))
            index = int(np.searchsorted(self.areas.firsts, place, side="right")) - 1
            area = self.areas.areas[index]
            start = area.start + ((place - int(self.areas.firsts[index])) << 12)
            end = min(start + (self.npages << 12), area.end)
            OPERATIONS[self.operation](self.spaces[area.space], start, end)
            done.append((area.space, start, end))
        return done
