"""What one walk consults beside tables and VMAs: the request and the kernel profile, as uint64."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm.words import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE
from gpuhmm.mm.notifier import MmuIntervalNotifier
from gpuhmm.mm.x86 import U64, Truth
from gpuhmm.shared import shared

_ZERO = U64(0)


class Walk(NamedTuple):
    """The constants of one call: ``struct hmm_range``, the address space and its kernel profile."""

    start: np.uint64
    end: np.uint64
    default_flags: np.uint64
    pfn_flags_mask: np.uint64
    dev_private_owner: np.uint64
    levels: np.uint64
    zero_pfn: np.uint64
    highest_memmap_pfn: np.uint64
    max_swapfiles: np.uint64
    migration_read: np.uint64
    migration_read_exclusive: np.uint64
    migration_write: np.uint64
    device_write: np.uint64
    device_read: np.uint64
    device_exclusive_write: np.uint64
    device_exclusive_read: np.uint64
    pte_marker: np.uint64
    swp_pfn_mask: np.uint64
    foreign_device_private_faults: np.uint64
    no_vma_single_hole: np.uint64
    pmd_bad_ignores: np.uint64
    pte_marker_empty: np.uint64
    typeless_swap_entry: np.uint64
    page_devmap: np.uint64
    shadow_stack: np.uint64
    absent_pud_is_hole: np.uint64
    device_private_pmd: np.uint64
    hmm_pfn_order_shift: np.uint64
    hmm_pfn_sticky: np.uint64


class Request(Protocol):
    """What a walk is asked for: :class:`gpuhmm.HmmRange`, or its like for runs and for batches."""

    notifier: MmuIntervalNotifier
    default_flags: int
    dev_private_owner: int

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...

    @property
    def pfn_flags_mask(self) -> int: ...


def walk_constants(range_: Request) -> npt.NDArray[np.uint64]:
    """Return uint64[29], the fields of :class:`Walk` for one call."""
    mm = range_.notifier.mm
    kernel = mm.kernel
    fields = [
        range_.start,
        range_.end,
        range_.default_flags,
        range_.pfn_flags_mask,
        range_.dev_private_owner,
        mm.levels,
        mm.zero_pfn,
        mm.highest_memmap_pfn,
        kernel.max_swapfiles,
        kernel.swp_migration_read,
        kernel.swp_migration_read_exclusive,
        kernel.swp_migration_write,
        kernel.swp_device_write,
        kernel.swp_device_read,
        kernel.swp_device_exclusive_write,
        kernel.swp_device_exclusive_read,
        kernel.swp_pte_marker,
        (1 << kernel.swp_pfn_bits[mm.levels - 4]) - 1,
        kernel.foreign_device_private_faults,
        kernel.no_vma_single_hole,
        kernel.pmd_bad_ignores,
        kernel.pte_marker_empty,
        kernel.typeless_swap_entry,
        kernel.page_devmap,
        kernel.shadow_stack_bit(mm.shstk),
        kernel.absent_pud_is_hole,
        kernel.device_private_pmd,
        kernel.hmm_pfn_order_shift,
        kernel.hmm_pfn_sticky,
    ]
    return np.array(fields, dtype=np.uint64)


@shared("Walk(Array1)")
def unpack(constants: npt.NDArray[np.uint64]) -> Walk:
    """Return the fields by name; a kernel calls this once and keeps them in registers."""
    return Walk(
        constants[U64(0)],
        constants[U64(1)],
        constants[U64(2)],
        constants[U64(3)],
        constants[U64(4)],
        constants[U64(5)],
        constants[U64(6)],
        constants[U64(7)],
        constants[U64(8)],
        constants[U64(9)],
        constants[U64(10)],
        constants[U64(11)],
        constants[U64(12)],
        constants[U64(13)],
        constants[U64(14)],
        constants[U64(15)],
        constants[U64(16)],
        constants[U64(17)],
        constants[U64(18)],
        constants[U64(19)],
        constants[U64(20)],
        constants[U64(21)],
        constants[U64(22)],
        constants[U64(23)],
        constants[U64(24)],
        constants[U64(25)],
        constants[U64(26)],
        constants[U64(27)],
        constants[U64(28)],
    )


@shared("Walk(Walk, uint64, uint64)")
def for_range(walk: Walk, start: np.uint64, end: np.uint64) -> Walk:
    """Return the same request and profile for another range of the same space."""
    return Walk(
        start,
        end,
        walk.default_flags,
        walk.pfn_flags_mask,
        walk.dev_private_owner,
        walk.levels,
        walk.zero_pfn,
        walk.highest_memmap_pfn,
        walk.max_swapfiles,
        walk.migration_read,
        walk.migration_read_exclusive,
        walk.migration_write,
        walk.device_write,
        walk.device_read,
        walk.device_exclusive_write,
        walk.device_exclusive_read,
        walk.pte_marker,
        walk.swp_pfn_mask,
        walk.foreign_device_private_faults,
        walk.no_vma_single_hole,
        walk.pmd_bad_ignores,
        walk.pte_marker_empty,
        walk.typeless_swap_entry,
        walk.page_devmap,
        walk.shadow_stack,
        walk.absent_pud_is_hole,
        walk.device_private_pmd,
        walk.hmm_pfn_order_shift,
        walk.hmm_pfn_sticky,
    )


@shared("boolean(Walk)")
def may_fault(walk: Walk) -> Truth:
    """False if no page of the range can ask for anything (the first test of hmm_range_need_fault)."""
    return ((walk.default_flags | walk.pfn_flags_mask) & HMM_PFN_REQ_FAULT) != _ZERO


@shared("boolean(Walk)")
def asks_by_page(walk: Walk) -> Truth:
    """True if the input words matter: else every page makes the request of ``default_flags``."""
    return may_fault(walk) and (walk.pfn_flags_mask & (HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE)) != _ZERO
