"""Translation of a virtual address as hardware does it, with what Linux adds: PROTNONE.

The result is one word: the physical address in bits 0 to 51, the level of the entry that decided in
bits 52 to 54, and why in bits 56 to 58.  Unlike the walk of ``hmm_range_fault()`` this asks no VMA.

Source: Intel SDM volume 3, chapter 4.5; arch/x86/include/asm/pgtable.h:pte_protnone (v5.18).
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpuhmm.mm.x86 import (
    ALL_ONES,
    INDEX_MASK,
    ONE,
    P4D_SHIFT,
    PAGE_PRESENT,
    PAGE_PSE,
    PAGE_SHIFT,
    PAGE_SIZE,
    PGDIR_SHIFT,
    PMD_PFN_MASK,
    PMD_SHIFT,
    PMD_SIZE,
    PTE_PFN_MASK,
    PUD_PFN_MASK,
    PUD_SHIFT,
    PUD_SIZE,
    U64,
    ZERO,
    Truth,
    entry_none,
    entry_present,
    entry_protnone,
    pte_present,
    uninverted,
)
from gpuhmm.shared import shared


class Reason(IntEnum):
    """Why an address translates as it does.

    MAPPED and PROTNONE have a physical address; a PROTNONE page is in memory, but Linux took all
    access away (mprotect or NUMA balancing), so that hardware faults.
    """

    MAPPED = 0
    PROTNONE = 1
    NONE = 2  # no entry: a hole
    NOT_PRESENT = 3  # an entry that is not present: swapped, migrating, a marker
    MISSING = 4  # the table is not in the image
    RESERVED = 5  # a bit that is reserved, PSE or inside a large page's address: hardware faults
    NOT_CANONICAL = 6


LEVEL_SHIFT = U64(52)
REASON_SHIFT = U64(56)
PA_MASK = U64((1 << 52) - 1)
LEVEL_MASK = U64(7)
REASON_MASK = U64(7)

_PROTNONE = U64(Reason.PROTNONE) << REASON_SHIFT
_NONE = U64(Reason.NONE) << REASON_SHIFT
_NOT_PRESENT = U64(Reason.NOT_PRESENT) << REASON_SHIFT
_MISSING = U64(Reason.MISSING) << REASON_SHIFT
_RESERVED = U64(Reason.RESERVED) << REASON_SHIFT

NOT_CANONICAL_WORD = U64(Reason.NOT_CANONICAL) << REASON_SHIFT

_LEVEL_1 = U64(1) << LEVEL_SHIFT
_LEVEL_2 = U64(2) << LEVEL_SHIFT
_LEVEL_3 = U64(3) << LEVEL_SHIFT
_LEVEL_4 = U64(4) << LEVEL_SHIFT
_LEVEL_5 = U64(5) << LEVEL_SHIFT

#: Set in every reason that comes without a physical address.
_FAULT_BITS = U64(6) << REASON_SHIFT

_FIVE_LEVELS = U64(5)
_PAGE_OFFSET = PAGE_SIZE - ONE
_PMD_OFFSET = PMD_SIZE - ONE
_PUD_OFFSET = PUD_SIZE - ONE
_TOP_OF_4 = U64(47)
_TOP_OF_5 = U64(56)

#: The row of a slot that has no leaf table.
NO_ROW = ALL_ONES


class Slot(NamedTuple):
    """What maps 2 MiB: the ``row`` of a leaf table, or NO_ROW and the ``word`` of the first byte.

    ``step`` is 1 where the word counts up with the address, 0 where there is nothing to count.
    """

    row: np.uint64
    word: np.uint64
    step: np.uint64


@shared("boolean(uint64, uint64)")
def is_canonical(va: np.uint64, levels: np.uint64) -> Truth:
    """True if all bits above the translated ones repeat the topmost of those."""
    top = _TOP_OF_4
    if levels == _FIVE_LEVELS:
        top = _TOP_OF_5
    high = va >> top
    return high == ZERO or high == ALL_ONES >> top


@shared("boolean(uint64)")
def has_address(word: np.uint64) -> Truth:
    """True for MAPPED and PROTNONE."""
    return (word & _FAULT_BITS) == ZERO


@shared("uint64(uint64)")
def pte_translation(pte: np.uint64) -> np.uint64:
    """Return the word of the first byte of the page behind a PTE."""
    # Choices instead of branches: compilers make vectors of them.
    upright = pte
    if not entry_present(pte):
        upright = ~pte
    word = (upright & PTE_PFN_MASK) | _LEVEL_1
    if entry_protnone(pte):
        word = word | _PROTNONE
    fault = _NOT_PRESENT | _LEVEL_1
    if entry_none(pte):
        fault = _NONE | _LEVEL_1
    if not pte_present(pte):
        word = fault
    return word


@shared("boolean(uint64)")
def is_table(entry: np.uint64) -> Truth:
    """True for an entry of level 2 or 3 behind which a table stands."""
    return (entry & (PAGE_PRESENT | PAGE_PSE)) == PAGE_PRESENT


@shared("uint64(uint64)")
def large_reserved(pfn_mask: np.uint64) -> np.uint64:
    """Return the bits of a large page's entry below its address, bit 12 (PAT) apart.

    Source: Intel SDM volume 3, tables 4-16 and 4-18.
    """
    return PTE_PFN_MASK & ~pfn_mask & ~PAGE_SIZE


@shared("uint64(uint64, uint64, uint64)")
def large_translation(entry: np.uint64, pfn_mask: np.uint64, level: np.uint64) -> np.uint64:
    """Return the word of the first byte of the page of an entry of level 2 or 3 that is no table.

    ``pfn_mask`` is that of the level, ``level`` the word's bits for it.
    """
    if entry_present(entry):
        if (entry & large_reserved(pfn_mask)) != ZERO:
            return _RESERVED | level
        return (entry & pfn_mask) | level
    if entry_none(entry):
        return _NONE | level
    if entry_protnone(entry) and (entry & PAGE_PSE) != ZERO:
        return (uninverted(entry) & pfn_mask) | _PROTNONE | level
    return _NOT_PRESENT | level


@shared("uint64(uint64, uint64)")
def top_fault(entry: np.uint64, level: np.uint64) -> np.uint64:
    """Return the word of an entry of level 4 or 5 behind which no table is known."""
    if not entry_present(entry):
        if entry_none(entry):
            return _NONE | level
        return _NOT_PRESENT | level
    if (entry & PAGE_PSE) != ZERO:
        return _RESERVED | level
    return _MISSING | level


@shared("boolean(uint64)")
def top_leads_down(entry: np.uint64) -> Truth:
    """True for an entry of level 4 or 5 that hardware follows."""
    return (entry & (PAGE_PRESENT | PAGE_PSE)) == PAGE_PRESENT


@shared("Slot(uint64)")
def constant_slot(word: np.uint64) -> Slot:
    """A slot in which every address has the same word."""
    return Slot(NO_ROW, word, ZERO)


@shared("Slot(uint64, uint64)")
def large_slot(word: np.uint64, offset: np.uint64) -> Slot:
    """A slot inside one large page, ``offset`` bytes after its start."""
    if has_address(word):
        return Slot(NO_ROW, word + offset, ONE)
    return Slot(NO_ROW, word, ZERO)


@shared("Slot(uint64, uint64, Array2, ChildArray)")
def slot_at(
    va: np.uint64, levels: np.uint64, upper: npt.NDArray[np.uint64], child: npt.NDArray[np.int32]
) -> Slot:
    """Return what maps the 2 MiB around a canonical ``va``, from the top table down."""
    row = ZERO
    if levels == _FIVE_LEVELS:
        index = (va >> PGDIR_SHIFT) & INDEX_MASK
        if not top_leads_down(upper[row, index]) or child[row, index] < 0:
            return constant_slot(top_fault(upper[row, index], _LEVEL_5))
        row = U64(child[row, index])

    index = (va >> P4D_SHIFT) & INDEX_MASK
    if not top_leads_down(upper[row, index]) or child[row, index] < 0:
        return constant_slot(top_fault(upper[row, index], _LEVEL_4))
    row = U64(child[row, index])

    index = (va >> PUD_SHIFT) & INDEX_MASK
    entry = upper[row, index]
    if not is_table(entry):
        word = large_translation(entry, PUD_PFN_MASK, _LEVEL_3)
        return large_slot(word, (va & _PUD_OFFSET) & ~_PMD_OFFSET)
    if child[row, index] < 0:
        return constant_slot(_MISSING | _LEVEL_3)
    row = U64(child[row, index])

    index = (va >> PMD_SHIFT) & INDEX_MASK
    entry = upper[row, index]
    if not is_table(entry):
        return large_slot(large_translation(entry, PMD_PFN_MASK, _LEVEL_2), ZERO)
    if child[row, index] < 0:
        return constant_slot(_MISSING | _LEVEL_2)
    return Slot(U64(child[row, index]), ZERO, ZERO)


@shared("uint64(uint64, Slot, Array2)")
def slot_word(va: np.uint64, slot: Slot, leaf: npt.NDArray[np.uint64]) -> np.uint64:
    """Return the word of ``va``, which lies in ``slot``."""
    if slot.row == NO_ROW:
        return slot.word + (va & _PMD_OFFSET) * slot.step
    word = pte_translation(leaf[slot.row, (va >> PAGE_SHIFT) & INDEX_MASK])
    if has_address(word):
        return word | (va & _PAGE_OFFSET)
    return word


@shared("uint64(uint64, uint64, Array2, ChildArray, Array2)")
def translate_one(
    va: np.uint64,
    levels: np.uint64,
    upper: npt.NDArray[np.uint64],
    child: npt.NDArray[np.int32],
    leaf: npt.NDArray[np.uint64],
) -> np.uint64:
    """Return the word of any address."""
    if not is_canonical(va, levels):
        return NOT_CANONICAL_WORD
    return slot_word(va, slot_at(va, levels, upper, child), leaf)
