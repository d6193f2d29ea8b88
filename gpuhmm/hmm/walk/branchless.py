"""The word of a PTE, and whether it stops the walk, as arithmetic without a branch.

``gpuhmm.hmm.walk.pte`` says what they are; this says the same in the fewest operations, for one PTE or
for the eight of :mod:`gpuhmm.kernels.lanes` at once.  ``tests/hmm/test_branchless.py`` holds every
function against that one, over all bits.
"""

from __future__ import annotations

import numpy as np

from gpuhmm.hmm.walk.constants import Walk
from gpuhmm.hmm.words import HMM_PFN_ERROR, HMM_PFN_REQ_FAULT, HMM_PFN_VALID, HMM_PFN_WRITE
from gpuhmm.mm.profile import NO_TYPE
from gpuhmm.mm.x86 import (
    ALL_ONES,
    MAX_PFN,
    ONE,
    PAGE_PRESENT,
    PAGE_PROTNONE,
    PAGE_RW,
    PAGE_SHIFT,
    PAGE_SPECIAL,
    PTE_PFN_MASK,
    U64,
    ZERO,
)
from gpuhmm.shared import shared

#: All that the word of a plain page depends on.
_KEPT = PTE_PFN_MASK | PAGE_PRESENT | PAGE_RW | PAGE_SPECIAL
_KEPT_IF_PRESENT = PTE_PFN_MASK | PAGE_RW | PAGE_SPECIAL
_HIGHEST_PFN = U64(MAX_PFN - 1)

#: From RW and PRESENT of a PTE to WRITE and VALID of a word, from D, which shadow stacks make writable; and
#: the bit above the PFN field, which sums overflow into.
_RW_TO_WRITE = U64(61)
_PRESENT_TO_VALID = U64(63)
_DIRTY_TO_WRITE = U64(56)
_OVERFLOW = U64(52)
_SPECIAL_TO_OVERFLOW = U64(43)
_PROTNONE_SHIFT = U64(8)

_TYPE_SHIFT = U64(59)
#: More than any swap type, and than NO_TYPE: what is not 0 overflows into the bit above.
_NO_TYPE = U64(NO_TYPE)

#: Of ``unusual``: beyond the memory map, or special.
UNUSUAL = (ONE << _OVERFLOW) | PAGE_SPECIAL
#: Where ``may_stop`` and ``may_be_owned`` leave their answers.
STOPS = HMM_PFN_REQ_FAULT
OWNED = PAGE_PROTNONE


@shared("uint64(uint64, uint64)")
def equal(one: np.uint64, other: np.uint64) -> np.uint64:
    """Return all ones where both are the same, else 0."""
    if one == other:
        return ALL_ONES
    return ZERO


@shared("uint64(Walk)")
def room_above(walk: Walk) -> np.uint64:
    """Return what a PTE's PFN field must be raised by to overflow if its PFN lies beyond the memory map."""
    return (_HIGHEST_PFN - walk.highest_memmap_pfn) << PAGE_SHIFT


@shared("uint64(uint64, uint64)")
def differing(pte: np.uint64, granted: np.uint64) -> np.uint64:
    """Return the PFN field of a PTE, and where PRESENT, RW and SPECIAL are not those of ``granted``."""
    return (pte ^ granted) & _KEPT


@shared("uint64(uint64)")
def doubts(granted: np.uint64) -> np.uint64:
    """Return the bits of ``differing(pte, granted) + room_above(walk)`` that a plain PTE leaves clear.

    Plain is what has all bits of ``granted``, PRESENT among them, and a page for devices.
    """
    return ~(PTE_PFN_MASK | (PAGE_RW & ~granted))


@shared("uint64(uint64, uint64)")
def plain_word(pte: np.uint64, granted: np.uint64) -> np.uint64:
    """Return the word of a PTE that is plain, all bits of ``granted`` set; without shadow stacks."""
    different = differing(pte, granted)
    flags = HMM_PFN_VALID | ((granted & PAGE_RW) << _RW_TO_WRITE)
    return ((different >> PAGE_SHIFT) | (different << _RW_TO_WRITE)) ^ flags


@shared("uint64(uint64)")
def usual_word(pte: np.uint64) -> np.uint64:
    """Return the word of a PTE that is plain, the zero page, or not present: what most mixes are of.

    Without shadow stacks.
    """
    there = pte & ((pte & PAGE_PRESENT) * ALL_ONES)
    kept = there & _KEPT_IF_PRESENT
    return (kept >> PAGE_SHIFT) | (kept << _RW_TO_WRITE) | (there << _PRESENT_TO_VALID)


@shared("uint64(uint64, Walk)")
def unusual(pte: np.uint64, walk: Walk) -> np.uint64:
    """Return a value with a bit of ``UNUSUAL`` where ``usual_word`` may not be the word of the PTE."""
    kept = pte & ((pte & PAGE_PRESENT) * ALL_ONES) & _KEPT_IF_PRESENT
    zero_page = equal(kept, (walk.zero_pfn << PAGE_SHIFT) | PAGE_SPECIAL)
    protnone = equal(pte & (PAGE_PRESENT | PAGE_PROTNONE), PAGE_PROTNONE)
    return ((kept + room_above(walk)) & ~zero_page) | protnone


@shared("uint64(uint64, Walk)")
def any_word(pte: np.uint64, walk: Walk) -> np.uint64:
    """Return ``ownerless_word(pte, walk)``, for any PTE."""
    present = (pte & PAGE_PRESENT) * ALL_ONES
    pfn = ~(pte ^ present) & PTE_PFN_MASK  # upright: it is inverted where P is 0
    apart = (pfn + room_above(walk)) | (pte << _SPECIAL_TO_OVERFLOW)
    not_zero_page = (pfn ^ (walk.zero_pfn << PAGE_SHIFT)) + PTE_PFN_MASK
    has_no_page = apart & not_zero_page & equal(pte & walk.page_devmap, ZERO)
    error = ((has_no_page >> _OVERFLOW) & ONE) * ALL_ONES
    write = ((pte << _RW_TO_WRITE) | ((pte & walk.shadow_stack) << _DIRTY_TO_WRITE)) & HMM_PFN_WRITE
    flags = present & (HMM_PFN_VALID | write)
    mapped = present | ((pte & PAGE_PROTNONE) >> _PROTNONE_SHIFT) * ALL_ONES
    word = (((pfn >> PAGE_SHIFT) | flags) & ~error) | (error & HMM_PFN_ERROR)
    return word & mapped


@shared("uint64(uint64, uint64, Walk)")
def may_stop(word: np.uint64, request: np.uint64, walk: Walk) -> np.uint64:
    """Return a value with the bit ``STOPS`` where ``pte_may_stop`` is true, given the PTE's ``any_word``."""
    asked = (request & walk.pfn_flags_mask) | walk.default_flags
    refused = asked & ~word
    return (refused | (refused << ONE)) & asked


@shared("uint64(uint64, Walk)")
def may_be_owned(pte: np.uint64, walk: Walk) -> np.uint64:
    """Return a value with the bit ``OWNED`` where ``may_be_device_private`` is true."""
    kind = pte >> _TYPE_SHIFT
    other = ((kind ^ walk.device_write) + _NO_TYPE) & ((kind ^ walk.device_read) + _NO_TYPE)
    return ~(other | pte | (pte << _PROTNONE_SHIFT))
