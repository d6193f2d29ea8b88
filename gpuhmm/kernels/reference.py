"""The reference: ``hmm_range_fault()`` in plain Python, callback by callback, one page at a time.

Read it beside mm/hmm.c, and :mod:`gpuhmm.kernels.pagewalk` beside mm/pagewalk.c: the functions have
the kernel's names and its order of tests.  It is the judge of the other back ends and shares with them
only the predicates of entries (:mod:`gpuhmm.mm.x86`) and the need-fault rule (:mod:`gpuhmm.hmm.words`).

Source: mm/hmm.c (v5.18).
"""

from __future__ import annotations

from errno import EBUSY, EFAULT, EPERM
from typing import Any

import numpy as np

from gpuhmm.hmm.livelock import LivelockGuard
from gpuhmm.hmm.ranges import HmmRange
from gpuhmm.hmm.runs import HmmRuns
from gpuhmm.hmm.settle import SequentialWalk
from gpuhmm.hmm.words import (
    HMM_NEED_ALL_BITS,
    HMM_NEED_WRITE_FAULT,
    HMM_PFN_ERROR,
    HMM_PFN_ORDER_SHIFT,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    hmm_pte_need_fault,
)
from gpuhmm.kernels.pagewalk import PageWalk, WalkDisturbedError
from gpuhmm.mm import x86
from gpuhmm.mm.handler import FAULT_FLAG_REMOTE, FAULT_FLAG_WRITE, VM_FAULT_ERROR, FaultHandler
from gpuhmm.mm.vma import VM_IO, VM_PFNMAP, VM_READ, VM_WRITE
from gpuhmm.mm.x86 import U64

_VALID = int(HMM_PFN_VALID)
_WRITE = int(HMM_PFN_WRITE)
_ERROR = int(HMM_PFN_ERROR)
_ORDER_SHIFT = int(HMM_PFN_ORDER_SHIFT)


def resolver(range_: HmmRange) -> HmmWalk:
    """Return the walk of one call, a :class:`gpuhmm.hmm.settle.SequentialWalk`.

    It writes the words of ``range_`` as far as the kernel would.
    """
    return HmmWalk(range_, range_.hmm_pfns)


class HmmWalk(PageWalk, SequentialWalk):
    """A ``struct hmm_vma_walk`` together with its ``struct mm_walk``.

    Words are read from and stored in ``hmm_pfns``, one place a page of ``range_``.
    """

    def __init__(self, range_: HmmRange | HmmRuns, hmm_pfns: Any) -> None:
        super().__init__(range_.notifier.mm)
        self.range = range_
        self.hmm_pfns = hmm_pfns
        self.profile = self.mm.kernel
        self.last = range_.start
        self.default_flags = U64(range_.default_flags)
        self.pfn_flags_mask = U64(range_.pfn_flags_mask)
        self.pfn_bits = self.profile.swp_pfn_bits[self.mm.levels - 4]

    @property
    def handler(self) -> FaultHandler:
        return self.mm.faults  # not before a fault happens: the default model may be large

    # -- mm/hmm.c: the outer loop -------------------------------------------------------------

    def hmm_range_fault(self) -> int:
        with self.mm.mmap_lock.read():
            return self.restart_until_done()

    def restart_until_done(self) -> int:
        guard = LivelockGuard(self.mm)
        while True:
            self.range.stats.walks += 1
            if self.range.notifier.check_retry(self.range.notifier_seq):
                return -EBUSY
            step = self.range.stats.begin_walk(self.last, self.range.end)
            try:
                ret = self.walk_page_range(self.last, self.range.end)
            except WalkDisturbedError:
                ret = -EBUSY
            step.ret = ret
            self.range.stats.splits += self.splits
            self.splits = 0
            if ret != -EBUSY:
                return ret
            guard.restarting_at(self.last)

    # -- mm/hmm.c: the callbacks --------------------------------------------------------------

    def hmm_vma_walk_test(self, start: int, end: int) -> int:
        assert self.vma is not None
        if not self.vma.flags & (VM_IO | VM_PFNMAP) and self.vma.flags & VM_READ:
            return 0
        if self.hmm_range_need_fault(start, end, 0):
            return -EFAULT
        self.hmm_pfns_fill(start, end, _ERROR)
        return 1

    def hmm_vma_walk_hole(self, addr: int, end: int) -> int:
        required_fault = self.hmm_range_need_fault(addr, end, 0)
        if self.vma is None:
            if required_fault:
                return -EFAULT
            self.hmm_pfns_fill(addr, end, _ERROR)
            return 0
        if required_fault:
            return self.hmm_vma_fault(addr, end, required_fault)
        self.hmm_pfns_fill(addr, end, 0)
        return 0

    def hmm_vma_walk_pud(self, entry: np.uint64, addr: int, end: int) -> tuple[bool, int]:
        """Return whether the walk goes on below this PUD, and the return code."""
        if not (x86.entry_trans_huge(entry) or x86.entry_devmap(entry)):
            return True, 0
        if not (x86.pud_huge(entry) and x86.entry_devmap(entry)):
            return True, 0
        if not x86.entry_present(entry):
            return False, self.hmm_vma_walk_hole(addr, end)
        cpu_flags = _write_flags(entry) | 18 << _ORDER_SHIFT
        required_fault = self.hmm_range_need_fault(addr, end, cpu_flags)
        if required_fault:
            return False, self.hmm_vma_fault(addr, end, required_fault)
        pfn = int(x86.pud_pfn(entry)) + ((addr & ((1 << 30) - 1)) >> 12)
        self.hmm_pfns_fill(addr, end, pfn, cpu_flags)
        return False, 0

    def hmm_vma_walk_pmd(self, entry: np.uint64, start: int, end: int) -> int:
        if not x86.pmd_present(entry) and self.is_migration_type(int(x86.swp_type(entry))):
            if self.hmm_range_need_fault(start, end, 0):
                self.last = start
                self.range.stats.migration_waits += 1
                with self.mm.mmap_lock.released():
                    self.handler.migration_entry_wait(self.mm, start & -(1 << 21), 2)
                return -EBUSY
            self.hmm_pfns_fill(start, end, 0)
            return 0
        if not x86.pmd_present(entry):
            return self.error_or_efault(start, end)
        if x86.entry_devmap(entry) or x86.entry_trans_huge(entry):
            return self.hmm_vma_handle_pmd(entry, start, end)
        if x86.pmd_bad(entry, U64(self.profile.pmd_bad_ignores)):
            return self.error_or_efault(start, end)
        ptes = self.table(int(x86.table_pfn(entry)), start, 1)
        for addr in range(start, end, 4096):
            ret = self.hmm_vma_handle_pte(ptes[addr >> 12 & 511], addr, end)
            if ret:
                return ret
        return 0

    def error_or_efault(self, start: int, end: int) -> int:
        if self.hmm_range_need_fault(start, end, 0):
            return -EFAULT
        self.hmm_pfns_fill(start, end, _ERROR)
        return 0

    def hmm_vma_handle_pmd(self, entry: np.uint64, addr: int, end: int) -> int:
        cpu_flags = 0 if x86.entry_protnone(entry) else _write_flags(entry) | 9 << _ORDER_SHIFT
        required_fault = self.hmm_range_need_fault(addr, end, cpu_flags)
        if required_fault:
            return self.hmm_vma_fault(addr, end, required_fault)
        pfn = int(x86.pmd_pfn(entry)) + ((addr & ((1 << 21) - 1)) >> 12)
        self.hmm_pfns_fill(addr, end, pfn, cpu_flags)
        return 0

    def hmm_vma_handle_pte(self, pte: np.uint64, addr: int, end: int) -> int:
        i = (addr - self.range.start) >> 12
        if self.pte_none(pte):
            required_fault = self.need_fault(i, 0)
            if required_fault:
                return self.hmm_vma_fault(addr, end, required_fault)
            self.hmm_pfns[i] = 0
            return 0

        if not x86.pte_present(pte):
            return self.hmm_vma_handle_swap_pte(pte, addr, end)

        cpu_flags = _pte_to_hmm_pfn_flags(pte)
        required_fault = self.need_fault(i, cpu_flags)
        if required_fault:
            return self.hmm_vma_fault(addr, end, required_fault)
        if (
            not self.vm_normal_page(pte)
            and not x86.entry_devmap(pte)
            and x86.pte_pfn(pte) != self.mm.zero_pfn
        ):
            if self.need_fault(i, 0):
                return -EFAULT
            self.hmm_pfns[i] = _ERROR
            return 0
        self.hmm_pfns[i] = int(x86.pte_pfn(pte)) | cpu_flags
        return 0

    def hmm_vma_handle_swap_pte(self, pte: np.uint64, addr: int, end: int) -> int:
        i = (addr - self.range.start) >> 12
        profile = self.profile
        swp_type = int(x86.swp_type(pte))
        is_device_private = swp_type in (profile.swp_device_write, profile.swp_device_read)
        if is_device_private:
            pfn = int(x86.swp_offset(pte)) & ((1 << self.pfn_bits) - 1)
            if self.owner(pfn) == self.range.dev_private_owner:
                write = _WRITE if swp_type == profile.swp_device_write else 0
                self.hmm_pfns[i] = pfn | _VALID | write
                return 0

        required_fault = self.need_fault(i, 0)
        if not required_fault:
            self.hmm_pfns[i] = 0
            return 0
        if swp_type < profile.max_swapfiles:
            return self.hmm_vma_fault(addr, end, required_fault)
        if is_device_private and profile.foreign_device_private_faults:
            return self.hmm_vma_fault(addr, end, required_fault)
        if swp_type in (profile.swp_device_exclusive_write, profile.swp_device_exclusive_read):
            return self.hmm_vma_fault(addr, end, required_fault)
        if self.is_migration_type(swp_type):
            self.last = addr
            self.range.stats.migration_waits += 1
            with self.mm.mmap_lock.released():
                self.handler.migration_entry_wait(self.mm, addr, 1)
            return -EBUSY
        return -EFAULT

    def hmm_vma_walk_hugetlb_entry(self, entry: np.uint64, start: int, end: int) -> int:
        assert self.vma is not None
        order = self.vma.page_shift - 12
        i = (start - self.range.start) >> 12
        cpu_flags = _pte_to_hmm_pfn_flags(entry) | order << _ORDER_SHIFT
        required_fault = self.need_fault(i, cpu_flags)
        if required_fault:
            return self.hmm_vma_fault(start, end, required_fault)
        pfn = int(x86.pte_pfn(entry)) + ((start & ((1 << self.vma.page_shift) - 1)) >> 12)
        self.hmm_pfns_fill(start, end, pfn, cpu_flags)
        return 0

    def hmm_vma_fault(self, addr: int, end: int, required_fault: int) -> int:
        assert self.vma is not None
        self.last = addr
        fault_flags = FAULT_FLAG_REMOTE
        if required_fault & int(HMM_NEED_WRITE_FAULT):
            if not self.vma.flags & VM_WRITE:
                return -EPERM
            fault_flags |= FAULT_FLAG_WRITE
        with self.mm.mmap_lock.write() as undisturbed:
            if not undisturbed and self.mm.vmas.lookup(addr) is not self.vma:
                return -EBUSY  # another thread changed the area in the meantime: walk again
            for va in range(addr, end, 4096):
                self.range.stats.faults += 1
                if self.handler.handle_mm_fault(self.mm, self.vma, va, fault_flags) & VM_FAULT_ERROR:
                    return -EFAULT
        return -EBUSY

    # hmm_walk_ops
    test_walk = hmm_vma_walk_test
    pte_hole = hmm_vma_walk_hole
    pud_entry = hmm_vma_walk_pud
    pmd_entry = hmm_vma_walk_pmd
    hugetlb_entry = hmm_vma_walk_hugetlb_entry

    # -- what the callbacks ask ---------------------------------------------------------------

    def need_fault(self, i: int, cpu_flags: int) -> int:
        return int(
            hmm_pte_need_fault(self.hmm_pfns[i], U64(cpu_flags), self.default_flags, self.pfn_flags_mask)
        )

    def hmm_range_need_fault(self, start: int, end: int, cpu_flags: int) -> int:
        if not (self.default_flags | self.pfn_flags_mask) & HMM_PFN_REQ_FAULT:
            return 0
        first = (start - self.range.start) >> 12
        required_fault = 0
        for i in range(first, first + ((end - start) >> 12)):
            required_fault |= self.need_fault(i, cpu_flags)
            if required_fault == HMM_NEED_ALL_BITS:
                break
        return required_fault

    def hmm_pfns_fill(self, start: int, end: int, word: int, cpu_flags: int | None = None) -> None:
        """Store ``word`` in every page, or with ``cpu_flags`` the PFNs that count up from it."""
        first, last = (start - self.range.start) >> 12, (end - self.range.start) >> 12
        if cpu_flags is None:
            self.hmm_pfns[first:last] = word
        else:
            pfns = np.arange(word, word + last - first, dtype=np.uint64)
            self.hmm_pfns[first:last] = pfns | U64(cpu_flags)

    def pte_none(self, pte: np.uint64) -> bool:
        """pte_none, and from v5.19 on pte_none_mostly, which takes markers for none."""
        if x86.entry_none(pte):
            return True
        return not x86.pte_present(pte) and int(x86.swp_type(pte)) == self.profile.swp_pte_marker

    def is_migration_type(self, swp_type: int) -> bool:
        profile = self.profile
        return swp_type in (
            profile.swp_migration_read,
            profile.swp_migration_read_exclusive,
            profile.swp_migration_write,
        )

    def vm_normal_page(self, pte: np.uint64) -> bool:
        """True if a struct page stands behind the PTE (mm/memory.c:vm_normal_page)."""
        return not x86.pte_special(pte) and int(x86.pte_pfn(pte)) <= self.mm.highest_memmap_pfn

    def owner(self, pfn: int) -> int | None:
        """Return the owner of a device-private page, None if there is none."""
        for first, end, owner in self.mm.device_private.tolist():
            if first <= pfn < end:
                return int(owner)
        return None


def _write_flags(entry: np.uint64) -> int:
    return _VALID | _WRITE if x86.entry_write(entry) else _VALID


def _pte_to_hmm_pfn_flags(pte: np.uint64) -> int:
    if x86.entry_none(pte) or not x86.pte_present(pte) or x86.entry_protnone(pte):
        return 0
    return _write_flags(pte)
