"""Fault handlers for checks: one that answers from a record, one that makes its answers up.

Both note every call and every store, so that the sequences of two back ends can be compared.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from gpuhmm.check.case import (
    HANDLE_MM_FAULT,
    MIGRATION_ENTRY_WAIT,
    PMD_MIGRATION_ENTRY_WAIT,
    WALK_STORE,
    Outcome,
    no_rows,
)
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.entry import NONE, NX, PFN, PROTNONE, PSE, RW, SPECIAL, TABLE, USER, A, P, encode_swap
from gpuhmm.mm.handler import (
    FAULT_FLAG_WRITE,
    VM_FAULT_COMPLETED,
    VM_FAULT_FALLBACK,
    VM_FAULT_HWPOISON,
    VM_FAULT_HWPOISON_LARGE,
    VM_FAULT_MAJOR,
    VM_FAULT_NOPAGE,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
    VM_FAULT_WRITE,
)
from gpuhmm.mm.notifier import MmuIntervalNotifier
from gpuhmm.mm.tables import NO_CHILD, Words
from gpuhmm.mm.vma import Vma
from gpuhmm.mm.x86 import level_shift

_PRESENT = P | USER | A | NX

_ERRORS = (
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
    VM_FAULT_HWPOISON,
    VM_FAULT_HWPOISON_LARGE,
    VM_FAULT_FALLBACK,
    VM_FAULT_OOM | VM_FAULT_MAJOR,
    VM_FAULT_FALLBACK | VM_FAULT_SIGBUS,
    VM_FAULT_RETRY,  # an error from v7.3 on, as the next
    VM_FAULT_COMPLETED,
)
_SUCCESSES = (0, 0, 0, VM_FAULT_MAJOR, VM_FAULT_WRITE, VM_FAULT_NOPAGE)

#: Calls after which improvised faults fail, so that a burst over a giant hole ends.
MAX_CALLS = 2500


class CallDiffersError(Exception):
    """A back end made another call than the record has."""


class JournaledSpace(AddressSpace):
    """A space that notes every entry stored through :meth:`set_entry`, and in which event."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.events: list[tuple[int, int, int, int, int]] = []
        self.writes: list[tuple[int, int, int]] = []
        self.in_handler = False

    def set_entry(self, va: int, level: int, value: int) -> None:
        """Store a raw entry and note it; outside the handler it is the walk's own store."""
        first = va >> level_shift(level) << level_shift(level)
        if not self.in_handler:
            self.events.append((WALK_STORE, first, 0, 0, len(self.writes)))
        self.writes.append((level, first, int(value)))
        super().set_entry(va, level, value)

    def journal(self) -> tuple[Words, Words]:
        """Return the events, uint64[n, 5], and the writes, uint64[m, 3]."""
        events = np.array(self.events, dtype=np.uint64) if self.events else no_rows(5)
        writes = np.array(self.writes, dtype=np.uint64) if self.writes else no_rows(3)
        return events, writes


class JournalingFaults:
    """A :class:`gpuhmm.FaultHandler` over a :class:`JournaledSpace`; subclasses say what a call does.

    After ``invalidate_after`` calls (-1: never) ``notifier`` is invalidated.
    """

    def __init__(self, invalidate_after: int) -> None:
        self.calls = 0
        self.invalidate_after = invalidate_after
        self.notifier: MmuIntervalNotifier | None = None

    def watch(self, notifier: MmuIntervalNotifier) -> None:
        """Take the notifier of the walk to come; one that is to be stale at once is so after this."""
        self.notifier = notifier
        self._maybe_invalidate()

    def handle_mm_fault(self, mm: AddressSpace, vma: Vma, va: int, flags: int) -> int:
        """Serve and note one fault."""
        return self._note(mm, HANDLE_MM_FAULT, va, flags, vma)

    def migration_entry_wait(self, mm: AddressSpace, va: int, level: int) -> None:
        """End and note one migration."""
        self._note(mm, MIGRATION_ENTRY_WAIT if level == 1 else PMD_MIGRATION_ENTRY_WAIT, va, 0, None)

    def serve(self, mm: JournaledSpace, kind: int, va: int, flags: int, vma: Vma | None) -> int:
        """Change the page tables as this call does; return VM_FAULT_* bits."""
        raise NotImplementedError

    def _note(self, mm: AddressSpace, kind: int, va: int, flags: int, vma: Vma | None) -> int:
        assert isinstance(mm, JournaledSpace)
        place = len(mm.events)
        mm.events.append((kind, va, flags, 0, len(mm.writes)))
        mm.in_handler = True
        try:
            result = self.serve(mm, kind, va, flags, vma)
        finally:
            mm.in_handler = False
        mm.events[place] = (kind, va, flags, result, mm.events[place][4])
        self.calls += 1
        self._maybe_invalidate()
        return result

    def _maybe_invalidate(self) -> None:
        if self.notifier is not None and self.calls == self.invalidate_after:
            self.notifier.invalidate()


class ScriptedFaults(JournalingFaults):
    """Answers call for call as recorded.  CallDiffersError for a call that the record has not."""

    def __init__(self, recorded: Outcome, invalidate_after: int) -> None:
        super().__init__(invalidate_after)
        rows = recorded.events.tolist()
        bounds = pairwise([*(row[4] for row in rows), len(recorded.writes)])
        self._writes = recorded.writes.tolist()
        self._script = [
            (*row, past) for row, (_, past) in zip(rows, bounds, strict=True) if row[0] != WALK_STORE
        ]

    def serve(self, mm: JournaledSpace, kind: int, va: int, flags: int, vma: Vma | None) -> int:
        """Do what the next recorded call did."""
        if self.calls >= len(self._script):
            raise CallDiffersError("one call more than recorded")
        expected_kind, expected_va, expected_flags, result, first, past = self._script[self.calls]
        if (kind, va, flags) != (expected_kind, expected_va, expected_flags):
            raise CallDiffersError("another call than recorded")
        for level, at, value in self._writes[first:past]:
            mm.set_entry(at, level, value)
        return int(result)


class ImprovisedFaults(JournalingFaults):
    """Answers that follow from ``seed``, the number of the call and the page tables alone.

    It maps what was asked for most of the time; now and then it does nothing, maps less than was
    asked, leaves something that must be faulted again, or fails.
    """

    def __init__(self, seed: int, invalidate_after: int) -> None:
        super().__init__(invalidate_after)
        self._seed = seed

    def serve(self, mm: JournaledSpace, kind: int, va: int, flags: int, vma: Vma | None) -> int:
        """Do something that a fault may do."""
        bits = _mix(self._seed, self.calls)
        if kind != HANDLE_MM_FAULT:
            level = 1 if kind == MIGRATION_ENTRY_WAIT else 2
            mm.set_entry(va, level, _entry(mm, level, bits, write=bool(bits >> 50 & 1)))
            return 0
        if self.calls >= MAX_CALLS:
            return VM_FAULT_SIGBUS
        roll, bits = bits & 1023, bits >> 10
        if roll < 3:
            return _ERRORS[bits % len(_ERRORS)]
        success = _SUCCESSES[bits % len(_SUCCESSES)]
        if roll < 60:
            return success
        assert vma is not None
        mapped = self._map(mm, vma, va, bool(flags & FAULT_FLAG_WRITE), bits >> 3)
        return success if mapped else VM_FAULT_SIGBUS

    def _map(self, mm: JournaledSpace, vma: Vma, va: int, write: bool, bits: int) -> bool:
        leaf = {12: 1, 21: 2, 30: 3}[vma.page_shift]
        for level in range(mm.levels, leaf, -1):
            if mm.page_tables.row(va, level - 1) != NO_CHILD:
                continue
            entry = mm.entry(va, level)
            if entry & ~NONE:
                if level > 3 or leaf > 1:
                    return False
                mm.set_entry(va, level, _entry(mm, level, bits, write) if entry & mm.kernel.huge_bits else 0)
                return True
            if level == 2 and bits & 15 == 0:
                mm.set_entry(va, 2, _entry(mm, 2, bits >> 4, write))
                return True
            mm.set_entry(va, level, mm.new_table_pfn() << 12 | TABLE)
        entry = mm.entry(va, leaf)
        if entry & P and (entry & RW or not write) and bits & 7:
            return True
        mm.set_entry(va, leaf, _entry(mm, leaf, bits >> 4, write))
        return True


def _entry(mm: AddressSpace, level: int, bits: int, write: bool) -> int:
    """Return a leaf of ``level``: mostly present, sometimes something that asks for another fault."""
    pfn = (bits >> 8) * 0x9E37_79B1 & 0x3FFF_FFFF & -(1 << 9 * (level - 1))
    huge = PSE if level > 1 else 0
    roll = bits & 255
    if roll < 4:
        return 0
    if roll < 10:
        return (~(pfn << 12) & PFN) | PROTNONE | huge
    if level == 1 and roll < 16:
        return encode_swap(roll % mm.kernel.max_swapfiles, pfn)
    if level == 1 and roll < 20:
        return mm.zero_pfn << 12 | _PRESENT | SPECIAL
    if level < 3 and roll < 23:
        return encode_swap(mm.kernel.swp_migration_read, pfn)
    if level == 2 and roll < 30:
        return encode_swap(mm.kernel.swp_device_write, 0x10_0000 + pfn)
    writable = RW if (write and roll < 245) or roll < 120 else 0
    return pfn << 12 | _PRESENT | huge | writable


def _mix(seed: int, count: int) -> int:
    """Return 64 bits that follow from ``seed`` and ``count`` (the finalizer of splitmix64)."""
    mask = (1 << 64) - 1
    state = (seed * 0xD134_2543_DE82_EF95 + (count + 1) * 0x9E37_79B9_7F4A_7C15) & mask
    state = (state ^ state >> 30) * 0xBF58_476D_1CE4_E5B9 & mask
    state = (state ^ state >> 27) * 0x94D0_49BB_1331_11EB & mask
    return state ^ state >> 31
