"""A recorded call with the space that is made ready for its replay, and what its outcome tells of pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from gpuhmm.check.recorded.call import Event, RecordedCall
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.entry import NONE
from gpuhmm.mm.handler import (
    FAULT_FLAG_WRITE,
    VM_FAULT_ERROR,
    VM_FAULT_WRITE,
)
from gpuhmm.mm.notifier import MMU_NOTIFY_CLEAR, MMU_NOTIFY_MIGRATE
from gpuhmm.mm.vma import VM_SHARED, Vma


@dataclass(frozen=True)
class Given:
    """A recorded call, and the space that is being made ready for its replay."""

    call: RecordedCall
    mm: AddressSpace

    @cached_property
    def cleared(self) -> set[tuple[int, int]]:
        """The ranges ``(start, end)`` of all CLEAR events."""
        return {(event.start, event.end) for event in self.call.events if event.event == MMU_NOTIFY_CLEAR}

    @cached_property
    def write_results(self) -> dict[int, list[int]]:
        """What every write fault at an address returned."""
        found: dict[int, list[int]] = {}
        for fault in self.call.faults:
            if fault.b & FAULT_FLAG_WRITE:
                found.setdefault(fault.a, []).append(fault.ret)
        return found

    @cached_property
    def first_results(self) -> dict[int, tuple[int, bool]]:
        """What the first fault at an address returned, and whether it wrote."""
        found: dict[int, tuple[int, bool]] = {}
        for fault in self.call.faults:
            found.setdefault(fault.a, (fault.ret, bool(fault.b & FAULT_FLAG_WRITE)))
        return found

    def reused(self, va: int) -> bool:
        """True if a write to a read-only page at ``va`` was granted without a copy."""
        if (va, va + 4096) in self._copied:
            return False
        results = self.write_results.get(va, ())
        if self.mm.kernel.vm_fault_write:
            return any(ret & VM_FAULT_WRITE for ret in results)
        return any(not ret & VM_FAULT_ERROR for ret in results)

    @cached_property
    def _copied(self) -> set[tuple[int, int]]:
        """CLEAR events that are copies: those inside the migration of a device page are not."""
        copied = set()
        before: Event | None = None
        for event in self.call.events:
            if event.event == MMU_NOTIFY_CLEAR:
                inside = before is not None and before.event == MMU_NOTIFY_MIGRATE
                if not (inside and before is not None and before.start == event.start):
                    copied.add((event.start, event.end))
            before = event
        return copied

    def private_entries(self, level: int) -> Iterator[tuple[int, int, Vma]]:
        """Yield (address, entry, area) of the entries of ``level`` in private areas that are not none."""
        for (at, va), entry in self.call.before.items():
            if at != level or not entry & ~NONE:
                continue
            vma = self.mm.vmas.lookup(max(va, self.call.start))
            if vma is not None and not vma.flags & VM_SHARED:
                yield va, entry, vma
