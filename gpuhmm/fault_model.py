"""A first model of ``handle_mm_fault()``: anonymous and hugetlb memory, swap and device entries.

What page tables do not show is decided by rule: private memory is anonymous, shared memory behaves as
shmem does, and a read-only private page is taken for shared, so that a write copies it.

Source: mm/memory.c, mm/huge_memory.c, mm/hugetlb.c, mm/migrate.c (v6.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpuhmm import x86
from gpuhmm.faults import (
    FAULT_FLAG_WRITE,
    VM_FAULT_HWPOISON,
    VM_FAULT_HWPOISON_LARGE,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
)
from gpuhmm.frames import Frames
from gpuhmm.space import NO_PFN, vm_page_prot
from gpuhmm.tables import NO_CHILD
from gpuhmm.vma import VM_HUGEPAGE, VM_SHARED, VM_WRITE, Vma

if TYPE_CHECKING:
    from gpuhmm.space import AddressSpace

_P = int(x86.PAGE_PRESENT)
_RW = int(x86.PAGE_RW)
_A = int(x86.PAGE_ACCESSED)
_D = int(x86.PAGE_DIRTY)
_PSE = int(x86.PAGE_PSE)
_SPECIAL = int(x86.PAGE_SPECIAL)
_SOFT_DIRTY = int(x86.PAGE_SOFT_DIRTY)
_UFFD_WP = int(x86.PAGE_UFFD_WP)
_DEVMAP = int(x86.PAGE_DEVMAP)
_PROTNONE = int(x86.PAGE_PROTNONE)
_PFN = int(x86.PTE_PFN_MASK)
_NONE = int(x86.KNL_ERRATUM_MASK)
_TABLE = int(x86.PAGE_TABLE)
_WRITABLE = _RW | _D | _SOFT_DIRTY  # pte_mkdirty sets both dirty bits

_SWP_SOFT_DIRTY = 1 << 1
_SWP_UFFD_WP = 1 << 2


class FaultModel:
    """gpuhmm's own :class:`gpuhmm.FaultHandler`.

    ``frames`` limits the 4 KiB frames that may be allocated, ``hugetlb_pages`` the pages of the
    hugetlb pool; None for no limit.
    """

    def __init__(self, frames: int | None = None, hugetlb_pages: int | None = None) -> None:
        self._limit = frames
        self._hugetlb_left = hugetlb_pages
        self._frames: Frames | None = None
        self._mm: AddressSpace | None = None

    def handle_mm_fault(self, mm: AddressSpace, vma: Vma, va: int, flags: int) -> int:
        """Serve a fault at ``va``; return VM_FAULT_* bits (mm/memory.c:handle_mm_fault)."""
        write = bool(flags & FAULT_FLAG_WRITE)
        if write and not vma.flags & VM_WRITE:
            return VM_FAULT_SIGSEGV
        if vma.is_hugetlb:
            return self._hugetlb_fault(mm, vma, va, write)
        row = mm.page_tables.row(va, 1)
        if row == NO_CHILD:
            done = self._huge_fault(mm, vma, va, write)
            if done is not None:
                return done
            if not self._make_tables(mm, va, 1):
                return VM_FAULT_OOM
            row = mm.page_tables.row(va, 1)
        return self._pte_fault(mm, vma, va, write, int(mm.page_tables.leaf[row, va >> 12 & 511]))

    def migration_entry_wait(self, mm: AddressSpace, va: int, level: int) -> None:
        """Let the migration of the page at ``va`` end: its entry is mapped (remove_migration_pte)."""
        entry = mm.entry(va, level)
        vma = mm.vmas.lookup(va) or mm.vmas.find(va)
        flags = vma.flags if vma is not None else 0
        mm.set_entry(va, level, self._migrated(mm, flags, entry, huge=level > 1))

    # -- a PTE --------------------------------------------------------------------------------

    def _pte_fault(self, mm: AddressSpace, vma: Vma, va: int, write: bool, pte: int) -> int:
        """mm/memory.c:handle_pte_fault."""
        if not pte & ~_NONE:
            return self._anonymous_page(mm, vma, va, write)
        if not pte & (_P | _PROTNONE):
            return self._swap_page(mm, vma, va, write, pte)
        if not pte & _P:
            return self._store(mm, va, 1, _restored(pte, vma))
        if write and not pte & _RW:
            return self._wp_page(mm, vma, va, pte)
        return self._touch(mm, va, 1, pte, write)

    def _anonymous_page(self, mm: AddressSpace, vma: Vma, va: int, write: bool) -> int:
        """mm/memory.c:do_anonymous_page, and shmem's share of do_fault."""
        prot = vm_page_prot(vma.flags)
        if not write and not vma.flags & VM_SHARED:
            return self._store(mm, va, 1, mm.zero_pfn << 12 | prot | _SPECIAL)
        pfn = self._take(mm)
        if pfn is None:
            return VM_FAULT_OOM
        return self._store(mm, va, 1, pfn << 12 | prot | (_WRITABLE if write else 0))

    def _wp_page(self, mm: AddressSpace, vma: Vma, va: int, pte: int) -> int:
        """mm/memory.c:do_wp_page: reuse where the page is shared memory, else copy."""
        if vma.flags & VM_SHARED:
            return self._store(mm, va, 1, pte | _WRITABLE | _A)
        pfn = self._take(mm)
        if pfn is None:
            return VM_FAULT_OOM
        with mm.subscriptions.invalidate_range(va, va + 4096):
            return self._store(mm, va, 1, pfn << 12 | vm_page_prot(vma.flags) | _WRITABLE)

    def _swap_page(self, mm: AddressSpace, vma: Vma, va: int, write: bool, pte: int) -> int:
        """mm/memory.c:do_swap_page."""
        kernel = mm.kernel
        swp_type = pte >> 59
        if swp_type == kernel.swp_pte_marker:
            return self._anonymous_page(mm, vma, va, write)
        if swp_type < kernel.max_swapfiles:
            return self._swap_in(mm, vma, va, write, pte)
        if swp_type in _migration_types(mm):
            return self._store(mm, va, 1, self._migrated(mm, vma.flags, pte, huge=False))
        if swp_type in (kernel.swp_device_write, kernel.swp_device_read):
            with mm.subscriptions.invalidate_range(va, va + 4096):
                return self._swap_in(mm, vma, va, swp_type == kernel.swp_device_write, pte)
        if swp_type in (kernel.swp_device_exclusive_write, kernel.swp_device_exclusive_read):
            prot = vm_page_prot(vma.flags) & ~_A  # restore_exclusive_pte leaves it old
            if swp_type == kernel.swp_device_exclusive_write and vma.flags & VM_WRITE:
                prot |= _WRITABLE
            with mm.subscriptions.invalidate_range(va, va + 4096):
                return self._store(mm, va, 1, _swp_pfn(mm, pte) << 12 | prot | _swp_software(pte))
        return VM_FAULT_HWPOISON if swp_type == kernel.swp_hwpoison else VM_FAULT_SIGBUS

    def _swap_in(self, mm: AddressSpace, vma: Vma, va: int, write: bool, pte: int) -> int:
        pfn = self._take(mm)
        if pfn is None:
            return VM_FAULT_OOM
        prot = vm_page_prot(vma.flags) | _swp_software(pte)
        if write and vma.flags & VM_WRITE:
            prot |= _WRITABLE
        return self._store(mm, va, 1, pfn << 12 | prot)

    # -- a PMD or a PUD -----------------------------------------------------------------------

    def _huge_fault(self, mm: AddressSpace, vma: Vma, va: int, write: bool) -> int | None:
        """What __handle_mm_fault does above the PTEs; None if the fault goes on below."""
        pud = mm.entry(va, 3)
        if pud & (_PSE | _DEVMAP) and pud & _P:
            return self._touch(mm, va, 3, pud | (_RW if write else 0), write)
        pmd = mm.entry(va, 2)
        if not pmd & ~_NONE:
            return self._huge_anonymous_page(mm, vma, va, write)
        if not pmd & (_P | _PROTNONE | _PSE):
            if pmd >> 59 in _migration_types(mm):
                return self._store(mm, va, 2, self._migrated(mm, vma.flags, pmd, huge=True))
            return VM_FAULT_SIGBUS
        if not pmd & (_PSE | _DEVMAP):
            return VM_FAULT_SIGBUS  # pmd_bad
        if pmd & (_P | _PROTNONE) == _PROTNONE:
            return self._store(mm, va, 2, _restored(pmd, vma) | _PSE)
        if write and not pmd & _RW:
            if vma.flags & VM_SHARED or pmd & _DEVMAP:
                return self._store(mm, va, 2, pmd | _WRITABLE | _A)
            if not self._split_huge_pmd(mm, va, pmd, vma):
                return VM_FAULT_OOM
            return None
        return self._touch(mm, va, 2, pmd, write)

    def _huge_anonymous_page(self, mm: AddressSpace, vma: Vma, va: int, write: bool) -> int | None:
        """mm/huge_memory.c:do_huge_pmd_anonymous_page; None where a small page has to do."""
        first = va & -(1 << 21)
        if not vma.flags & VM_HUGEPAGE or first < vma.start or first + (1 << 21) > vma.end:
            return None
        prot = vm_page_prot(vma.flags) | _PSE
        if not write and not vma.flags & VM_SHARED:
            if mm.huge_zero_pfn == NO_PFN:
                pfn = self._take(mm, 9)
                if pfn is None:
                    return None
                mm.huge_zero_pfn = pfn
            entry = mm.huge_zero_pfn << 12 | prot
        else:
            pfn = self._take(mm, 9)
            if pfn is None:
                return None
            entry = pfn << 12 | prot | (_WRITABLE if write else 0)
        if not self._make_tables(mm, va, 2):
            return VM_FAULT_OOM
        return self._store(mm, va, 2, entry)

    def _split_huge_pmd(self, mm: AddressSpace, va: int, pmd: int, vma: Vma) -> bool:
        """mm/huge_memory.c:__split_huge_pmd: 512 PTEs in place of one huge entry."""
        table = self._take(mm)
        if table is None:
            return False
        first = va & -(1 << 21)
        pfn = int(x86.pmd_pfn(np.uint64(pmd)))
        with mm.subscriptions.invalidate_range(first, first + (1 << 21)):
            mm.set_entry(va, 2, table << 12 | _TABLE)
            if pfn == mm.huge_zero_pfn:
                flags = vm_page_prot(vma.flags) | _SPECIAL
                ptes = np.full(512, mm.zero_pfn << 12 | flags, dtype=np.uint64)
            else:
                flags = pmd & ~(_PFN | _PSE) & ~(_D | _RW)
                ptes = (np.arange(pfn, pfn + 512, dtype=np.uint64) << x86.PAGE_SHIFT) | np.uint64(flags)
            mm.page_tables.store_leaf(mm.page_tables.row(va, 1), 0, ptes)
        return True

    def _hugetlb_fault(self, mm: AddressSpace, vma: Vma, va: int, write: bool) -> int:
        """mm/hugetlb.c:hugetlb_fault."""
        level = 3 if vma.page_shift == 30 else 2
        size = 1 << vma.page_shift
        first = va & -size
        entry = mm.entry(va, level)
        shared = bool(vma.flags & VM_SHARED)
        fresh = not entry & ~_NONE
        if not fresh and not entry & (_P | _PROTNONE):
            if entry >> 59 in _migration_types(mm):
                return self._store(mm, va, level, self._migrated(mm, vma.flags, entry, huge=True))
            return VM_FAULT_HWPOISON_LARGE if entry >> 59 == mm.kernel.swp_hwpoison else VM_FAULT_SIGBUS
        if not fresh and not (write and not entry & _RW):
            return self._touch(mm, va, level, entry, write)
        if not fresh and shared:
            return self._store(mm, va, level, entry | _WRITABLE | _A)
        if self._hugetlb_left == 0:
            return VM_FAULT_SIGBUS
        pfn = self._take(mm, vma.page_shift - 12)
        if pfn is None:
            return VM_FAULT_SIGBUS
        if self._hugetlb_left is not None:
            self._hugetlb_left -= 1
        writable = write or (shared and vma.flags & VM_WRITE)
        new = pfn << 12 | vm_page_prot(vma.flags) | _PSE | (_WRITABLE if writable else 0)
        if fresh:
            return self._store(mm, va, level, new) if self._make_tables(mm, va, level) else VM_FAULT_OOM
        with mm.subscriptions.invalidate_range(first, first + size):
            return self._store(mm, va, level, new)

    # -- small steps --------------------------------------------------------------------------

    def _touch(self, mm: AddressSpace, va: int, level: int, entry: int, write: bool) -> int:
        """Row 6: the permission is enough; only A, and D on write, may be missing."""
        bits = _A | _WRITABLE if write else _A
        if mm.entry(va, level) != entry | bits:
            mm.set_entry(va, level, entry | bits)
        return 0

    def _store(self, mm: AddressSpace, va: int, level: int, entry: int) -> int:
        mm.set_entry(va, level, entry)
        return 0

    def _migrated(self, mm: AddressSpace, vm_flags: int, entry: int, huge: bool) -> int:
        """Return the entry that mm/migrate.c:remove_migration_pte leaves."""
        prot = vm_page_prot(vm_flags) | (_PSE if huge else 0)
        bits = mm.kernel.swp_pfn_bits[mm.levels - 4]
        if bits < 50:  # v6.1 keeps young and dirty above the PFN
            offset = int(x86.swp_offset(np.uint64(entry)))
            prot = prot if offset >> bits & 1 else prot & ~_A
            prot |= _D | _SOFT_DIRTY if offset >> (bits + 1) & 1 else 0
        if entry >> 59 == mm.kernel.swp_migration_write and vm_flags & VM_WRITE:
            prot |= _RW
        return (_swp_pfn(mm, entry) << 12 & _PFN) | prot | _swp_software(entry)

    def _make_tables(self, mm: AddressSpace, va: int, level: int) -> bool:
        """Make the tables above the entry of ``level``; False if there are no frames for them."""
        for upper in range(mm.levels, level, -1):
            if mm.page_tables.row(va, upper - 1) != NO_CHILD:
                continue
            pfn = self._take(mm)
            if pfn is None:
                return False
            mm.set_entry(va, upper, pfn << 12 | _TABLE)
        return True

    def _take(self, mm: AddressSpace, order: int = 0) -> int | None:
        if self._frames is None or self._mm is not mm:
            self._frames, self._mm = Frames(mm, self._limit), mm
        return self._frames.take(order)


def _restored(entry: int, vma: Vma) -> int:
    """Return a PROTNONE entry with the protection of its area again (do_numa_page)."""
    upright = entry ^ _PFN
    keep = upright & (_PFN | _D | _SOFT_DIRTY | _UFFD_WP | _SPECIAL)
    writable = _RW if upright & _D and vma.flags & VM_WRITE else 0  # writable before, or so it seems
    return keep | vm_page_prot(vma.flags) | writable


def _migration_types(mm: AddressSpace) -> tuple[int, int, int]:
    kernel = mm.kernel
    return kernel.swp_migration_read, kernel.swp_migration_read_exclusive, kernel.swp_migration_write


def _swp_pfn(mm: AddressSpace, entry: int) -> int:
    bits = mm.kernel.swp_pfn_bits[mm.levels - 4]
    return int(x86.swp_offset(np.uint64(entry))) & ((1 << bits) - 1)


def _swp_software(entry: int) -> int:
    """Return soft-dirty and uffd-wp of a swap entry as the bits of a present one."""
    soft_dirty = _SOFT_DIRTY if entry & _SWP_SOFT_DIRTY else 0
    return soft_dirty | (_UFFD_WP if entry & _SWP_UFFD_WP else 0)
