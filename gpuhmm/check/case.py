"""One call of ``hmm_range_fault()``: the space that it walks, what is asked, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.handler import FaultHandler
from gpuhmm.mm.profile import KernelProfile
from gpuhmm.mm.tables import Words
from gpuhmm.mm.vma import Vma

#: What happened in a walk: calls of the fault handler, and what the walk itself stored.
HANDLE_MM_FAULT = 1
MIGRATION_ENTRY_WAIT = 2
PMD_MIGRATION_ENTRY_WAIT = 3
WALK_STORE = 4


def no_rows(columns: int) -> Words:
    """Return uint64[0, columns]."""
    return np.empty((0, columns), dtype=np.uint64)


@dataclass(frozen=True)
class Outcome:
    """What one call left behind.

    ``events`` is uint64[n, 5]: kind, va, fault flags, VM_FAULT_* result, first row in ``writes``;
    ``writes`` uint64[m, 3]: level, va of the entry's first byte, raw value.  ``table_pfns`` and
    ``tables`` are the page tables afterwards, None if not looked at.  ``error`` is an exception that
    ended the call, in words.
    """

    ret: int
    walks: int
    hmm_pfns: Words
    events: Words = field(default_factory=lambda: no_rows(5))
    writes: Words = field(default_factory=lambda: no_rows(3))
    table_pfns: Words | None = None
    tables: Words | None = None
    error: str = ""


@dataclass(frozen=True)
class Case:
    """One call and its space.

    ``vmas`` is uint64[n, 4] (start, end, flags, page shift), ``table_pfns`` uint64[t] with the root
    first, ``table_entries`` uint64[e, 3] (place in ``table_pfns``, slot, raw entry), ``device_owners``
    uint64[d, 3] (first PFN, end PFN, owner).  ``invalidate_after`` events (-1: never) the range is
    invalidated.  ``shstk``: the CPU has user shadow stacks.  ``recorded`` is what is known to be right;
    without it, ``fault_seed`` tells :class:`gpuhmm.check.fault_script.ImprovisedFaults` how faults go.
    """

    name: str
    kernel: str | KernelProfile
    levels: int
    start: int
    end: int
    default_flags: int
    pfn_flags_mask: int
    dev_private_owner: int
    invalidate_after: int
    zero_pfn: int
    huge_zero_pfn: int
    highest_memmap_pfn: int
    device_owners: Words
    vmas: Words
    table_pfns: Words
    table_entries: Words
    hmm_pfns_in: Words
    shstk: bool = False
    fault_seed: int = 0
    recorded: Outcome | None = None

    @property
    def npages(self) -> int:
        """Pages of 4 KiB in the range."""
        return (self.end - self.start) >> 12

    def pages(self) -> Words:
        """Return the page-table pages, uint64[t, 512]."""
        pages = np.zeros((len(self.table_pfns), 512), dtype=np.uint64)
        entries = self.table_entries
        pages[entries[:, 0].astype(np.int64), entries[:, 1].astype(np.int64)] = entries[:, 2]
        return pages

    def space(
        self, faults: FaultHandler | None = None, kind: type[AddressSpace] = AddressSpace
    ) -> AddressSpace:
        """Return a fresh space of class ``kind`` whose faults ``faults`` serves."""
        return kind.from_tables(
            levels=self.levels,
            root_pfn=int(self.table_pfns[0]),
            table_pfns=self.table_pfns,
            tables=self.pages(),
            vmas=[Vma(*row) for row in self.vmas.tolist()],
            kernel=self.kernel,
            zero_pfn=self.zero_pfn,
            huge_zero_pfn=self.huge_zero_pfn,
            highest_memmap_pfn=self.highest_memmap_pfn,
            device_private=[tuple(row) for row in self.device_owners.tolist()],
            shstk=self.shstk,
            faults=faults,
        )

    def final_tables(self) -> tuple[Words, Words]:
        """Return PFNs and pages after the recorded writes.  ValueError without a record."""
        if self.recorded is None:
            raise ValueError(f"{self.name} has no recorded outcome")
        mm = self.space()
        for level, va, value in self.recorded.writes.tolist():
            mm.set_entry(va, level, value)
        return mm.tables()


def sparse_entries(pages: npt.NDArray[Any]) -> Words:
    """Return the nonzero entries of uint64[t, 512] as uint64[e, 3]: page, slot, raw entry."""
    page, slot = np.nonzero(pages)
    return np.stack([page.astype(np.uint64), slot.astype(np.uint64), pages[page, slot]], axis=1)
