"""gpuhmm's own ``handle_mm_fault()``: Linux's, over the page state of the space's machine.

Source: mm/memory.c, mm/huge_memory.c, mm/hugetlb.c, mm/migrate.c (v6.1); ``docs/fault-model.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuhmm.memory.fault.burst import handle_mm_fault_range
from gpuhmm.memory.fault.handle import handle_mm_fault
from gpuhmm.memory.fault.migration import is_migration_type, remove_migration_pte
from gpuhmm.mm.entry import NONE, PROTNONE, P, swp_pfn, swp_type_of
from gpuhmm.mm.handler import VM_FAULT_ERROR
from gpuhmm.mm.mmap_lock import write_locked
from gpuhmm.mm.vma import Vma

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace


class FaultModel:
    """gpuhmm's own :class:`gpuhmm.FaultHandler`.

    ``frames`` limits the 4 KiB frames that may be allocated, ``hugetlb_pages`` the pages of the
    hugetlb pool, of the machine (:class:`gpuhmm.memory.PhysicalMemory`) of the first space that faults;
    None leaves its limits as they are.
    """

    def __init__(self, frames: int | None = None, hugetlb_pages: int | None = None) -> None:
        self._limits: tuple[int | None, int | None] | None = (frames, hugetlb_pages)

    def handle_mm_fault(self, mm: AddressSpace, vma: Vma, va: int, flags: int) -> int:
        """Serve a fault at ``va``; return VM_FAULT_* bits (mm/memory.c:handle_mm_fault)."""
        if self._limits is not None:
            self._set_limits(mm)
        return handle_mm_fault(mm, vma, va, flags)

    def handle_mm_fault_range(
        self, mm: AddressSpace, vma: Vma, start: int, end: int, flags: int
    ) -> tuple[int, int]:
        """Fault every page of ``[start, end)``; return how many calls that took, and what the last returned.

        In bulk, with the same result as page by page; but a subclass with a ``handle_mm_fault`` of its own
        sees every call.
        """
        if type(self).handle_mm_fault is not FaultModel.handle_mm_fault:
            calls, ret = 0, 0
            for va in range(start, end, 4096):
                calls, ret = calls + 1, self.handle_mm_fault(mm, vma, va, flags)
                if ret & VM_FAULT_ERROR:
                    break
            return calls, ret
        if self._limits is not None:
            self._set_limits(mm)
        return handle_mm_fault_range(mm, vma, start, end, flags)

    def migration_entry_wait(self, mm: AddressSpace, va: int, level: int) -> None:
        """Let the migration of the page at ``va`` end, and with it all that it moves at once.

        Entries that came with given page tables have no known migration: the page stays where it is.
        """
        _end_migration(mm, va, level)

    def _set_limits(self, mm: AddressSpace) -> None:
        assert self._limits is not None
        frames, hugetlb_pages = self._limits
        if frames is not None:
            mm.memory.limit_frames(frames)
        if hugetlb_pages is not None:
            mm.memory.hugetlb_left = hugetlb_pages
        self._limits = None


@write_locked
def _end_migration(mm: AddressSpace, va: int, level: int) -> None:
    entry = mm.entry(va, level)
    if entry & (P | PROTNONE) or not entry & ~NONE or not is_migration_type(mm, swp_type_of(entry)):
        return  # another thread ended it between the walk and this wait
    migration = mm.memory.migration_of(mm, va, swp_pfn(mm, entry))
    if migration is not None:
        migration.end()
        return
    vma = mm.vmas.lookup(va)
    if vma is None:
        raise ValueError(f"a migration can only be waited for in an area (got va {va:#x})")
    remove_migration_pte(mm, vma, va, level)
