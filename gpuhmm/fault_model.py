"""gpuhmm's own ``handle_mm_fault()``: Linux's, over the page state of the space's machine.

Source: mm/memory.c, mm/huge_memory.c, mm/hugetlb.c, mm/migrate.c (v6.1); ``docs/fault-model.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuhmm.fault.handle import handle_mm_fault
from gpuhmm.fault.migration import remove_migration_pte
from gpuhmm.mmap_lock import write_locked
from gpuhmm.vma import Vma

if TYPE_CHECKING:
    from gpuhmm.space import AddressSpace


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
    migration = mm.memory.migration_of(mm, va)
    if migration is not None:
        migration.end()
        return
    vma = mm.vmas.lookup(va)
    if vma is None:
        raise ValueError(f"a migration can only be waited for in an area (got va {va:#x})")
    remove_migration_pte(mm, vma, va, level)
