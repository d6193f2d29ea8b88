"""One recorded driver loop: what a running kernel was asked, what it did, and what it left behind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gpuhmm.check.recorded.loops import LoopFile
from gpuhmm.mm.profile import KernelProfile
from gpuhmm.mm.tables import Words

WALK_PAGE_RANGE = 1
HANDLE_MM_FAULT = 2

# vma_kind
KIND_FILE = 1
KIND_VM_OPS = 2
KIND_HUGETLB = 4
KIND_NO_FAULT = 16
KIND_DAX = 32


class Call(NamedTuple):
    """``kind`` WALK_PAGE_RANGE: a start, b end; HANDLE_MM_FAULT: a address, b flags; and the return value."""

    kind: int
    a: int
    b: int
    ret: int


class Event(NamedTuple):
    """An invalidation of the caller's notifier, and in which try it came."""

    start: int
    end: int
    event: int
    attempt: int


class RecordedVma(NamedTuple):
    """An area, as recorded; ``page_prot`` raw, ``kind`` KIND_*, ``order`` of a hugetlb page."""

    start: int
    end: int
    flags: int
    pgoff: int
    page_prot: int
    kind: int
    order: int


@dataclass(frozen=True)
class RecordedCall:
    """Case ``index`` of ``file``."""

    file: LoopFile
    index: int

    def _number(self, name: str) -> int:
        return int(self.file.arrays[name][self.index])

    @property
    def name(self) -> str:
        """Say which case it is, for people."""
        arrays, i = self.file.arrays, self.index
        what = "/".join(str(arrays[name][i]) for name in ("scenario", "range", "pattern"))
        return f"{self.file.path.name}[{i}] ({what})"

    @cached_property
    def start(self) -> int:
        """The first byte of the range."""
        return self._number("start")

    @cached_property
    def end(self) -> int:
        """The first byte above the range."""
        return self._number("end")

    def number(self, name: str) -> int:
        """Return one of the numbers of a case: ``rc``, ``tries``, ``zero_pfn``, ..."""
        return self._number(name)

    @property
    def levels(self) -> int:
        """4 or 5."""
        return 5 if self._number("la57") else 4

    @property
    def root_pfn(self) -> int:
        """The PFN of the top table."""
        return self._number("pgd_phys") >> 12

    @property
    def kernel(self) -> KernelProfile:
        """The kernel that was recorded, as it was built."""
        return self.file.profile(self.index)

    def words(self, name: str) -> Words:
        """Return ``pfn_in``, ``pfn_first`` or ``pfn_out``: uint64[npages]."""
        return self.file.rows("pfn", name, self.index)

    @cached_property
    def vmas(self) -> list[RecordedVma]:
        """The areas that touch the range, and one neighbour on each side."""
        names = ("start", "end", "vm_flags", "pgoff", "page_prot", "kind", "order")
        columns = [self.file.rows("vma", name, self.index).tolist() for name in names]
        return [RecordedVma(*row) for row in zip(*columns, strict=True)]

    @cached_property
    def calls(self) -> list[Call]:
        """Walks and faults, in the order in which they were entered."""
        columns = [self.file.rows("calls", name, self.index).tolist() for name in ("kind", "a", "b", "ret")]
        return [Call(*row) for row in zip(*columns, strict=True)]

    @cached_property
    def faults(self) -> list[Call]:
        """The calls of handle_mm_fault()."""
        return [call for call in self.calls if call.kind == HANDLE_MM_FAULT]

    @cached_property
    def events(self) -> list[Event]:
        """The invalidations of the caller's notifier, in order."""
        names = ("start", "end", "event", "attempt")
        columns = [self.file.rows("events", name, self.index).tolist() for name in names]
        return [Event(*row) for row in zip(*columns, strict=True)]

    def table_rows(self, when: str) -> tuple[Words, Words, Words]:
        """Return level, address and value of every recorded entry ``before`` or ``after``: uint64[n] each.

        The level of the top table is its number, 4 or 5.
        """
        group = f"pt_{when}"
        level = self.file.rows(group, "level", self.index).astype(np.uint64)
        level = np.minimum(level, np.uint64(self.levels))
        return (
            level,
            self.file.rows(group, "va", self.index).astype(np.uint64),
            self.file.rows(group, "val", self.index).astype(np.uint64),
        )

    @cached_property
    def before(self) -> dict[tuple[int, int], int]:
        """(level, address) -> entry, before the call."""
        return self._entries("before")

    @cached_property
    def after(self) -> dict[tuple[int, int], int]:
        """(level, address) -> entry, after the call."""
        return self._entries("after")

    def _entries(self, when: str) -> dict[tuple[int, int], int]:
        level, va, value = self.table_rows(when)
        return {
            (one, two): three
            for one, two, three in zip(level.tolist(), va.tolist(), value.tolist(), strict=True)
        }
