"""The record of what was read: an address space, whatever it was read of."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.capture.mapping import Mapping
from gpuhmm.memory.space import AddressSpace

Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Identity:
    """A process: its pid, its command as the kernel knows it, state letter and parent."""

    pid: int
    command: str
    state: str
    parent: int
    kernel_thread: bool

    @property
    def is_self(self) -> bool:
        """True if it is the process that asks."""
        return self.pid == os.getpid()


@dataclass(frozen=True)
class LiveProcess:
    """A process that ran while it was read: who it was, and what /proc gave and did not give.

    ``kernel_release`` is that of the running kernel.  ``left_out`` names the mappings in the kernel's half.
    ``changed`` is true where the process was seen to change meanwhile.  ``pagemap_scan`` and ``kpageflags``
    tell whether these were used.
    """

    identity: Identity
    kernel_release: str
    left_out: list[str]
    changed: bool
    pagemap_scan: bool
    kpageflags: bool


@dataclass(frozen=True)
class Capture:
    """The memory of a process, a dump or a snapshot as it was read, over ``[start, end)`` bytes.

    ``mappings`` are the user mappings cut to ``[start, end)``, ``resident`` their present pages of
    4 KiB, ``windows`` the 2 MiB windows that hold anything (int64[n], ascending), and
    ``windows_with_swap`` those of them with entries that are not present.  ``pfns_real`` is false where
    the kernel hid them and they are numbers of ours.  ``write_rule`` says where the write bit comes from.
    ``source`` says in words what was read, and is empty for a process that was read just now; ``origin``
    says it for machines.  ``kernel_why`` says in words why ``space`` has the kernel that it has, and is empty
    where nobody chose one.  ``process`` is None where no live process was read.
    """

    space: AddressSpace
    start: int
    end: int
    mappings: list[Mapping]
    resident: list[int]
    windows: Indexes
    windows_with_swap: Indexes
    pfns_real: bool
    write_rule: str
    seconds: float
    origin: dict[str, Any]
    source: str = ""
    kernel_why: str = ""
    notes: list[str] = field(default_factory=list)
    process: LiveProcess | None = None

    @property
    def walked_as(self) -> str:
        """Whose walk it is and why, in words."""
        return f"walked as {self.space.kernel.title} does" + (f": {self.kernel_why}" * bool(self.kernel_why))

    @property
    def title(self) -> str:
        """What was read, in words."""
        if self.process is None or self.source:
            return self.source
        return f"pid {self.process.identity.pid} ({self.process.identity.command})"

    def swap_windows(self, start: int, end: int) -> list[int]:
        """Return which windows that overlap ``[start, end)`` have entries that are not present."""
        found = self.windows_with_swap
        low, high = np.searchsorted(found, [start >> 21, ((end - 1) >> 21) + 1])
        return [int(window) for window in found[low:high]]
