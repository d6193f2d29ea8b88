"""The record of what was read: the address space of a process, a dump or a snapshot."""

from __future__ import annotations

import os
import platform
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
class ProcessCapture:
    """A process's memory as it was read.

    ``mappings`` are the user mappings cut to ``[start, end)``, ``resident`` their present pages of
    4 KiB as pagemap counts them, ``windows`` the 2 MiB windows that hold anything (int64[n], ascending),
    and ``windows_with_swap`` those of them with entries that are not present.
    ``pfns_real`` is false where the kernel hid them and they are numbers of ours.  ``source`` says in
    words what was read where it is no live process, ``origin`` the same for machines.
    """

    identity: Identity
    space: AddressSpace
    start: int
    end: int
    mappings: list[Mapping]
    resident: list[int]
    windows: Indexes
    windows_with_swap: Indexes
    left_out: list[str]
    pfns_real: bool
    pagemap_scan: bool
    kpageflags: bool
    changed: bool
    seconds: float
    write_rule: str
    notes: list[str] = field(default_factory=list)
    kernel_release: str = field(default_factory=platform.release)
    source: str = ""
    origin: dict[str, Any] = field(default_factory=lambda: {"kind": "process"})

    def swap_windows(self, start: int, end: int) -> list[int]:
        """Return which windows that overlap ``[start, end)`` have entries that are not present."""
        found = self.windows_with_swap
        low, high = np.searchsorted(found, [start >> 21, ((end - 1) >> 21) + 1])
        return [int(window) for window in found[low:high]]
