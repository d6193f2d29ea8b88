"""The reference: ``hmm_range_fault()`` in plain Python, callback by callback, one page at a time.

Read it beside mm/hmm.c, and :mod:`gpuhmm.kernels.pagewalk` beside mm/pagewalk.c: the functions have
the kernel's names and its order of tests.  It is the judge of the other back ends and shares with them
only the predicates of entries (:mod:`gpuhmm.mm.x86`) and the need-fault rule (:mod:`gpuhmm.hmm.words`).

Source: mm/hmm.c (v5.18; later ones where the profile says so).
"""

from __future__ import annotations

from errno import EBUSY, EFAULT, EINVAL, ENOMEM, EPERM
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
    HMM_PFN_REQ_FAULT,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    hmm_pte_need_fault,
)
from gpuhmm.kernels.pagewalk import PageWalk, WalkDisturbedError
from gpuhmm.mm import x86
from gpuhmm.mm.handler import (
    FAULT_FLAG_WRITE,
    VM_FAULT_COMPLETED,
    VM_FAULT_ERROR,
    VM_FAULT_HWPOISON,
    VM_FAULT_HWPOISON_LARGE,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
    FaultHandler,
)
from gpuhmm.mm.vma import VM_IO, VM_PFNMAP, VM_READ, VM_WRITE
from gpuhmm.mm.x86 import U64

_VALID = int(HMM_PFN_VALID)
_WRITE = int(HMM_PFN_WRITE)
_ERROR = int(HMM_PFN_ERROR)

#: What ends a walk so that a fault is made after it, and what a fault returns that gave the lock up (v7.3).
HMM_FAULT_PENDING = 1
HMM_FAULT_UNLOCKED = 2


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
        self.shadow_stack = U64(self.profile.shadow_stack_bit(self.mm.shstk))
        self.sticky = U64(self.profile.hmm_pfn_sticky)
        #: What the walk left to be faulted: its end and HMM_NEED_* bits; from ``last`` on (v7.3).
        self.pending = (0, 0)

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
                if ret == HMM_FAULT_PENDING:
                    ret = self.hmm_do_fault()
            except WalkDisturbedError:
                ret = -EBUSY
            step.ret = -EBUSY if ret == HMM_FAULT_UNLOCKED else ret
            self.range.stats.splits += self.splits
            self.splits = 0
            if ret != -EBUSY:
                return step.ret
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
        devmap = x86.entry_devmap(entry, self.devmap)
        if not (x86.entry_trans_huge(entry, self.devmap) or devmap):  # pud_trans_huge_lock
            return True, 0
        if self.profile.absent_pud_is_hole and not x86.entry_present(entry):
            return False, self.hmm_vma_walk_hole(addr, end)
        if self.profile.page_devmap and not (x86.pud_huge(entry) and devmap):
            return True, 0
        if not x86.entry_present(entry):
            return False, self.hmm_vma_walk_hole(addr, end)
        write = _WRITE if x86.pud_write(entry) else 0
        cpu_flags = _VALID | write | self.order_flags(18)
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
            if self.profile.device_private_pmd:
                return self.hmm_vma_handle_absent_pmd(entry, start, end)
            return self.error_or_efault(start, end)
        if x86.entry_devmap(entry, self.devmap) or x86.entry_trans_huge(entry, self.devmap):
            return self.hmm_vma_handle_pmd(entry, start, end)
        if x86.pmd_bad(entry, U64(self.profile.pmd_bad_ignores)):
            return self.error_or_efault(start, end)
        ptes = self.table(int(x86.table_pfn(entry)), start, 1)
        for addr in range(start, end, 4096):
            ret = self.hmm_vma_handle_pte(ptes[addr >> 12 & 511], addr, end)
            if ret:
                return ret
        return 0

    def hmm_vma_handle_absent_pmd(self, entry: np.uint64, start: int, end: int) -> int:
        if self.is_device_private(int(x86.swp_type(entry))):
            pfn = self.device_private_pfn(entry)
            if self.owner(pfn) == self.range.dev_private_owner:
                write = _WRITE if x86.swp_type(entry) == self.profile.swp_device_write else 0
                # The kernel begins with the entry's own PFN, wherever the extent begins.
                self.hmm_pfns_fill(start, end, pfn, _VALID | write | self.order_flags(9))
                return 0
            required_fault = self.hmm_range_need_fault(start, end, 0)
            if required_fault:
                return self.hmm_vma_fault(start, end, required_fault)
        return self.error_or_efault(start, end)

    def error_or_efault(self, start: int, end: int) -> int:
        if self.hmm_range_need_fault(start, end, 0):
            return -EFAULT
        self.hmm_pfns_fill(start, end, _ERROR)
        return 0

    def hmm_vma_handle_pmd(self, entry: np.uint64, addr: int, end: int) -> int:
        cpu_flags = 0
        if not x86.entry_protnone(entry):
            write = _WRITE if x86.pmd_write(entry, self.shadow_stack) else 0
            cpu_flags = _VALID | write | self.order_flags(9)
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
            self.store(i, 0)
            return 0

        if not x86.pte_present(pte):
            return self.hmm_vma_handle_swap_pte(pte, addr, end)

        cpu_flags = self.pte_to_hmm_pfn_flags(pte)
        required_fault = self.need_fault(i, cpu_flags)
        if required_fault:
            return self.hmm_vma_fault(addr, end, required_fault)
        if (
            not self.vm_normal_page(pte)
            and not x86.entry_devmap(pte, self.devmap)
            and x86.pte_pfn(pte) != self.mm.zero_pfn
        ):
            if self.need_fault(i, 0):
                return -EFAULT
            self.store(i, _ERROR)
            return 0
        self.store(i, int(x86.pte_pfn(pte)) | cpu_flags)
        return 0

    def hmm_vma_handle_swap_pte(self, pte: np.uint64, addr: int, end: int) -> int:
        i = (addr - self.range.start) >> 12
        profile = self.profile
        swp_type = int(x86.swp_type(pte))
        is_device_private = self.is_device_private(swp_type)
        if is_device_private:
            pfn = self.device_private_pfn(pte)
            if self.owner(pfn) == self.range.dev_private_owner:
                write = _WRITE if swp_type == profile.swp_device_write else 0
                self.store(i, pfn | _VALID | write)
                return 0

        required_fault = self.need_fault(i, 0)
        if not required_fault:
            self.store(i, 0)
            return 0
        is_typeless = profile.typeless_swap_entry and swp_type == 0 and x86.swp_offset(pte) == 0
        if swp_type < profile.max_swapfiles and not is_typeless:
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
        cpu_flags = self.pte_to_hmm_pfn_flags(entry) | self.order_flags(order)
        required_fault = self.need_fault(i, cpu_flags)
        if required_fault:
            return self.hmm_vma_fault(start, end, required_fault)
        pfn = int(x86.pte_pfn(entry)) + ((start & ((1 << self.vma.page_shift) - 1)) >> 12)
        self.hmm_pfns_fill(start, end, pfn, cpu_flags)
        return 0

    def hmm_vma_fault(self, addr: int, end: int, required_fault: int) -> int:
        self.last = addr
        self.pending = end, required_fault
        # From v7.3 on the loop faults, once the walk has returned; nothing happens in between.
        return HMM_FAULT_PENDING if self.profile.faults_after_walk else self.hmm_do_fault()

    def hmm_do_fault(self) -> int:
        addr = self.last
        end, required_fault = self.pending
        vma = self.mm.vmas.lookup(addr)
        if vma is None:
            return -EFAULT
        fault_flags = self.range.fault_flags
        if required_fault & int(HMM_NEED_WRITE_FAULT):
            if not vma.flags & VM_WRITE:
                return -EPERM
            fault_flags |= FAULT_FLAG_WRITE
        with self.mm.mmap_lock.write() as undisturbed:
            if not undisturbed and self.mm.vmas.lookup(addr) is not vma:
                return -EBUSY  # another thread changed the area in the meantime: walk again
            for va in range(addr, end, 4096):
                self.range.stats.faults += 1
                result = self.handler.handle_mm_fault(self.mm, vma, va, fault_flags)
                if not self.profile.faults_after_walk:
                    if result & VM_FAULT_ERROR:
                        return -EFAULT
                    continue
                if result & (VM_FAULT_RETRY | VM_FAULT_COMPLETED):
                    self.range.stats.locks_dropped += 1
                    return HMM_FAULT_UNLOCKED
                if result & VM_FAULT_ERROR:
                    return vm_fault_to_errno(result) or -EINVAL
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

    def store(self, i: int, word: int) -> None:
        """Store a word beside what is kept of the input."""
        self.hmm_pfns[i] = (self.hmm_pfns[i] & self.sticky) | U64(word)

    def hmm_pfns_fill(self, start: int, end: int, word: int, cpu_flags: int | None = None) -> None:
        """Store ``word`` in every page, or with ``cpu_flags`` the PFNs that count up from it."""
        first, last = (start - self.range.start) >> 12, (end - self.range.start) >> 12
        words: Any = U64(word)
        if cpu_flags is not None:
            words = np.arange(word, word + last - first, dtype=np.uint64) | U64(cpu_flags)
        self.hmm_pfns[first:last] = (self.hmm_pfns[first:last] & self.sticky) | words

    def order_flags(self, order: int) -> int:
        """hmm_pfn_flags_order."""
        return order << self.profile.hmm_pfn_order_shift

    def pte_to_hmm_pfn_flags(self, pte: np.uint64) -> int:
        if x86.entry_none(pte) or not x86.pte_present(pte) or x86.entry_protnone(pte):
            return 0
        return _VALID | (_WRITE if x86.pte_write(pte, self.shadow_stack) else 0)

    def pte_none(self, pte: np.uint64) -> bool:
        """pte_none, and from v5.19 on pte_none_mostly, which takes markers for none (v6.19: some of them)."""
        if x86.entry_none(pte):
            return True
        if x86.pte_present(pte) or int(x86.swp_type(pte)) != self.profile.swp_pte_marker:
            return False
        empty = self.profile.pte_marker_empty
        return not empty or bool(int(x86.swp_offset(pte)) & empty)

    def is_migration_type(self, swp_type: int) -> bool:
        profile = self.profile
        return swp_type in (
            profile.swp_migration_read,
            profile.swp_migration_read_exclusive,
            profile.swp_migration_write,
        )

    def is_device_private(self, swp_type: int) -> bool:
        return swp_type in (self.profile.swp_device_write, self.profile.swp_device_read)

    def device_private_pfn(self, entry: np.uint64) -> int:
        """swp_offset_pfn, or swp_offset up to v6.0."""
        return int(x86.swp_offset(entry)) & ((1 << self.pfn_bits) - 1)

    def vm_normal_page(self, pte: np.uint64) -> bool:
        """True if a struct page stands behind the PTE (mm/memory.c:vm_normal_page)."""
        return not x86.pte_special(pte) and int(x86.pte_pfn(pte)) <= self.mm.highest_memmap_pfn

    def owner(self, pfn: int) -> int | None:
        """Return the owner of a device-private page, None if there is none."""
        for first, end, owner in self.mm.device_private.tolist():
            if first <= pfn < end:
                return int(owner)
        return None


def vm_fault_to_errno(result: int) -> int:
    """include/linux/mm.h:vm_fault_to_errno without FOLL_HWPOISON; 0 for bits that it does not know."""
    if result & VM_FAULT_OOM:
        return -ENOMEM
    if result & (VM_FAULT_HWPOISON | VM_FAULT_HWPOISON_LARGE | VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV):
        return -EFAULT
    return 0
