"""The decision about one PTE: the word that a device gets, and what stops the walk there.

Source: mm/hmm.c:hmm_vma_handle_pte (v5.18 to v7.3), mm/memory.c:vm_normal_page.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm.walk.constants import Walk
from gpuhmm.hmm.words import HMM_PFN_ERROR, HMM_PFN_VALID, HMM_PFN_WRITE, hmm_pte_need_fault
from gpuhmm.mm.x86 import (
    U64,
    Truth,
    entry_devmap,
    entry_none,
    entry_protnone,
    pte_pfn,
    pte_present,
    pte_special,
    pte_write,
    swp_offset,
    swp_type,
)
from gpuhmm.shared import shared

#: What stops a walk.  FAULT: hmm_vma_fault.  WAIT_*: a migration.  EFAULT: -EFAULT.  SPLIT, CLEAR:
#: the walk itself changes an upper entry and goes on.  MISSING: a table that nobody gave us.
ACTION_NONE = U64(0)
ACTION_FAULT = U64(1)
ACTION_WAIT_PTE = U64(2)
ACTION_WAIT_PMD = U64(3)
ACTION_EFAULT = U64(4)
ACTION_SPLIT = U64(5)
ACTION_CLEAR = U64(6)
ACTION_MISSING = U64(7)

_ZERO = U64(0)
_FIRST = U64(0)
_END = U64(1)
_OWNER = U64(2)


@shared("uint64(uint64, Walk)")
def pte_to_hmm_pfn_flags(pte: np.uint64, walk: Walk) -> np.uint64:
    """Return VALID and WRITE as the CPU's entry grants them; also for a hugetlb entry."""
    if entry_none(pte) or not pte_present(pte) or entry_protnone(pte):
        return _ZERO
    if pte_write(pte, walk.shadow_stack):
        return HMM_PFN_VALID | HMM_PFN_WRITE
    return HMM_PFN_VALID


@shared("boolean(uint64, Walk)")
def pte_is_hole(pte: np.uint64, walk: Walk) -> Truth:
    """pte_none, and a PTE marker that the kernel takes for none (pte_none_mostly; v6.19: uffd-wp only)."""
    if entry_none(pte):
        return True
    if pte_present(pte) or swp_type(pte) != walk.pte_marker:
        return False
    return walk.pte_marker_empty == _ZERO or (swp_offset(pte) & walk.pte_marker_empty) != _ZERO


@shared("boolean(uint64, Walk)")
def has_no_page(pte: np.uint64, walk: Walk) -> Truth:
    """True for a present PTE that no device may map: no struct page, no DAX, not the zero page.

    From v6.17 on there is no DAX bit: such pages are ordinary ones.
    """
    pfn = pte_pfn(pte)
    return (
        (pte_special(pte) or pfn > walk.highest_memmap_pfn)
        and not entry_devmap(pte, walk.page_devmap)
        and pfn != walk.zero_pfn
    )


@shared("boolean(uint64, Walk)")
def is_device_private(pte: np.uint64, walk: Walk) -> Truth:
    """is_device_private_entry, for a PTE that is not present."""
    kind = swp_type(pte)
    return kind == walk.device_write or kind == walk.device_read


@shared("boolean(uint64, Walk, Array2)")
def is_own_device_private(pte: np.uint64, walk: Walk, owners: npt.NDArray[np.uint64]) -> Truth:
    """True if the page of a PTE or PMD is of ``dev_private_owner``; a PFN that nobody owns never is."""
    if not is_device_private(pte, walk):
        return False
    pfn = swp_offset(pte) & walk.swp_pfn_mask
    for i in range(owners.shape[0]):
        row = U64(i)
        if pfn >= owners[row, _FIRST] and pfn < owners[row, _END]:
            return owners[row, _OWNER] == walk.dev_private_owner
    return False


@shared("boolean(uint64, Walk)")
def may_be_device_private(pte: np.uint64, walk: Walk) -> Truth:
    """False for every PTE whose word and stop do not depend on who owns the page."""
    return not pte_present(pte) and is_device_private(pte, walk)


@shared("uint64(uint64, Walk)")
def ownerless_word(pte: np.uint64, walk: Walk) -> np.uint64:
    """pte_word of a PTE that is no device-private page of ``dev_private_owner``.

    It looks nothing up, so that the compiler turns a loop over it into vector instructions.
    """
    if not pte_present(pte):
        return _ZERO
    if has_no_page(pte, walk):
        return HMM_PFN_ERROR
    return pte_pfn(pte) | pte_to_hmm_pfn_flags(pte, walk)


@shared("uint64(uint64, Walk)")
def device_private_word(entry: np.uint64, walk: Walk) -> np.uint64:
    """Return PFN, VALID and WRITE of a device-private entry, a PTE or a PMD."""
    word = (swp_offset(entry) & walk.swp_pfn_mask) | HMM_PFN_VALID
    if swp_type(entry) == walk.device_write:
        return word | HMM_PFN_WRITE
    return word


@shared("uint64(uint64, Walk, Array2)")
def pte_word(pte: np.uint64, walk: Walk, owners: npt.NDArray[np.uint64]) -> np.uint64:
    """Return the HMM_PFN word of a page at which the walk does not stop."""
    if pte_present(pte) or pte_is_hole(pte, walk) or not is_own_device_private(pte, walk, owners):
        return ownerless_word(pte, walk)
    return device_private_word(pte, walk)


@shared("boolean(uint64, uint64, Walk)")
def pte_may_stop(pte: np.uint64, request: np.uint64, walk: Walk) -> Truth:
    """True if the word of the PTE does not grant what the page asks for.

    That is whenever the PTE stops the walk, and else only for a device-private page of
    ``dev_private_owner``.  Like ownerless_word, a loop over it becomes vector instructions.
    """
    word = ownerless_word(pte, walk)  # of cpu_flags only VALID and WRITE count
    return hmm_pte_need_fault(request, word, walk.default_flags, walk.pfn_flags_mask) != _ZERO


@shared("UniTuple2(uint64, uint64, Walk, Array2)")
def pte_stop(
    pte: np.uint64, request: np.uint64, walk: Walk, owners: npt.NDArray[np.uint64]
) -> tuple[np.uint64, np.uint64]:
    """Return the ACTION_* that the page's request calls for, and the HMM_NEED_* bits with it."""
    if not pte_may_stop(pte, request, walk):
        return ACTION_NONE, _ZERO
    asked = hmm_pte_need_fault(request, _ZERO, walk.default_flags, walk.pfn_flags_mask)
    if pte_is_hole(pte, walk):
        return ACTION_FAULT, asked
    if not pte_present(pte):
        return swap_pte_stop(pte, walk, owners), asked
    cpu_flags = pte_to_hmm_pfn_flags(pte, walk)
    need = hmm_pte_need_fault(request, cpu_flags, walk.default_flags, walk.pfn_flags_mask)
    if need != _ZERO:
        return ACTION_FAULT, need
    return ACTION_EFAULT, asked  # only has_no_page is left


@shared("uint64(uint64, Walk, Array2)")
def swap_pte_stop(pte: np.uint64, walk: Walk, owners: npt.NDArray[np.uint64]) -> np.uint64:
    """Return the ACTION_* for a PTE that is not present and whose page was asked for."""
    if is_own_device_private(pte, walk, owners):
        return ACTION_NONE
    kind = swp_type(pte)
    if kind < walk.max_swapfiles:
        if walk.typeless_swap_entry != _ZERO and kind == _ZERO and swp_offset(pte) == _ZERO:
            return ACTION_EFAULT
        return ACTION_FAULT
    if kind == walk.device_exclusive_write or kind == walk.device_exclusive_read:
        return ACTION_FAULT
    if is_device_private(pte, walk) and walk.foreign_device_private_faults != _ZERO:
        return ACTION_FAULT
    if is_migration(kind, walk):
        return ACTION_WAIT_PTE
    return ACTION_EFAULT


@shared("boolean(uint64, Walk)")
def is_migration(kind: np.uint64, walk: Walk) -> Truth:
    """is_migration_entry, given the swap type."""
    return (
        kind == walk.migration_read or kind == walk.migration_read_exclusive or kind == walk.migration_write
    )
