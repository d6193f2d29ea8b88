"""Runs: where virtual and physical addresses count up together, found in a part of a leaf table.

Parts are independent, so that they can be looked at in parallel; runs that go on from one part into
the next are joined afterwards (:mod:`gpuhmm.translation.mapped`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuhmm.mm.x86 import (
    ONE,
    PAGE_NX,
    PAGE_RW,
    PAGE_SHIFT,
    PAGE_SIZE,
    PAGE_USER,
    U64,
    ZERO,
    entry_present,
)
from gpuhmm.shared import shared
from gpuhmm.translation.words import PA_MASK, has_address, pte_translation

#: What a run allows: write, user, no execution; PROTNONE pages allow nothing at all.
MAPPING_WRITE = U64(1)
MAPPING_USER = U64(2)
MAPPING_NX = U64(4)
MAPPING_PROTNONE = U64(8)

#: Flags that every entry on the way must grant, and the one that any of them can set.
MAPPING_GRANTED = MAPPING_WRITE | MAPPING_USER

#: Columns of a run: virtual and physical address, pages of 4 KiB, flags.
RUN_COLUMNS = 4
_VA = U64(0)
_PA = U64(1)
_PAGES = U64(2)
_FLAGS = U64(3)


@shared("uint64(uint64)")
def entry_flags(entry: np.uint64) -> np.uint64:
    """Return the MAPPING_* bits of one entry, a leaf or one above it."""
    flags = ZERO
    if (entry & PAGE_RW) != ZERO:
        flags = flags | MAPPING_WRITE
    if (entry & PAGE_USER) != ZERO:
        flags = flags | MAPPING_USER
    if (entry & PAGE_NX) != ZERO:
        flags = flags | MAPPING_NX
    if not entry_present(entry):
        flags = flags | MAPPING_PROTNONE
    return flags


@shared("uint64(uint64, uint64)")
def combined_flags(above: np.uint64, entry: np.uint64) -> np.uint64:
    """Return the MAPPING_* bits of an entry below others whose bits are ``above``."""
    flags = entry_flags(entry)
    return (flags & above & MAPPING_GRANTED) | ((flags | above) & ~MAPPING_GRANTED)


@shared("uint64(uint64, uint64)")
def compared_bits(above: np.uint64, split_by: np.uint64) -> np.uint64:
    """Return the bits of PTEs below ``above`` that make runs end where they change.

    PROTNONE pages and others never share a run.
    """
    bits = ZERO
    if (split_by & above & MAPPING_WRITE) != ZERO:
        bits = bits | PAGE_RW
    if (split_by & above & MAPPING_USER) != ZERO:
        bits = bits | PAGE_USER
    if (split_by & ~above & MAPPING_NX) != ZERO:
        bits = bits | PAGE_NX
    return bits


@shared("uint64(uint64, uint64)")
def run_key(pte: np.uint64, compared: np.uint64) -> np.uint64:
    """Return a number that grows by 4096 from page to page of one run, and never does otherwise.

    It is the page's word with the bits of ``compared`` in places that the word leaves free.
    """
    return pte_translation(pte) | (pte & compared)


@shared("uint64(uint64, uint64, uint64, uint64, Array2)")
def count_runs(
    row: np.uint64, first: np.uint64, past: np.uint64, compared: np.uint64, leaf: npt.NDArray[np.uint64]
) -> np.uint64:
    """Return how many runs the slots ``[first, past)`` of a leaf table hold.

    ``compared`` is what :func:`compared_bits` says.
    """
    count = ZERO
    expected = ZERO  # no key is 0
    for i in range(first, past):
        key = run_key(leaf[row, U64(i)], compared)
        if key != expected and has_address(key):
            count = count + ONE
        expected = key + PAGE_SIZE
    return count


@shared("void(uint64, uint64, uint64, uint64, uint64, uint64, uint64, Array2, Array2)")
def fill_runs(
    row: np.uint64,
    first: np.uint64,
    past: np.uint64,
    va: np.uint64,
    above: np.uint64,
    compared: np.uint64,
    at: np.uint64,
    leaf: npt.NDArray[np.uint64],
    runs: npt.NDArray[np.uint64],
) -> None:
    """Store the runs that :func:`count_runs` counted from row ``at`` of ``runs`` on, uint64[n, 4].

    ``va`` is the address that slot 0 maps, ``above`` the MAPPING_* bits of the entries on the way to
    the table.  Flags that do not split runs are those of the first page.
    """
    place = at
    begun = past  # the slot where the open run began; past: none is open
    expected = ZERO  # no key is 0
    for i in range(first, past):
        slot = U64(i)
        key = run_key(leaf[row, slot], compared)
        if key != expected:
            if begun != past:
                runs[place, _PAGES] = slot - begun
                place = place + ONE
                begun = past
            if has_address(key):
                pte = leaf[row, slot]
                runs[place, _VA] = va + (slot << PAGE_SHIFT)
                runs[place, _PA] = pte_translation(pte) & PA_MASK
                runs[place, _FLAGS] = combined_flags(above, pte)
                begun = slot
        expected = key + PAGE_SIZE
    if begun != past:
        runs[place, _PAGES] = past - begun
