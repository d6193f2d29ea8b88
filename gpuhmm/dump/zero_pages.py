"""The zero page and the huge zero page of a machine whose memory we have: recognised by use and content."""

from __future__ import annotations

import numpy as np

from gpuhmm.dump.raw_tables import RawTables
from gpuhmm.image import MemorySource
from gpuhmm.mm.profile import KernelProfile, kernel_profile
from gpuhmm.mm.running_kernel import ASSUMED
from gpuhmm.mm.tables import Words
from gpuhmm.mm.x86 import (
    PAGE_PRESENT,
    PAGE_PSE,
    PAGE_RW,
    PAGE_SPECIAL,
    PAGE_USER,
    PMD_PFN_MASK,
    PTE_PFN_MASK,
    U64,
)

#: Of the special and the read-only huge PFNs, the most used ones are looked at, up to this many.
_CANDIDATES = 16

_USER_PRESENT = PAGE_PRESENT | PAGE_USER


def find_zero_pages(
    tables: RawTables, memory: MemorySource, kernel: str | KernelProfile = ASSUMED
) -> tuple[int | None, int | None]:
    """Return the PFNs of the zero page and of the huge zero page, None for one that nothing maps.

    The zero page is the PFN that most user entries map special (not devmap) and read-only and whose
    4 KiB hold zeros; the huge one is that of 2 MiB that most user entries map read-only, all of whose
    2 MiB hold zeros.  ``kernel`` says which bit is devmap.
    """
    leave_out = PAGE_RW | U64(kernel_profile(kernel).page_devmap)
    special = tables.leaf[
        (tables.leaf & (_USER_PRESENT | PAGE_SPECIAL | leave_out)) == _USER_PRESENT | PAGE_SPECIAL
    ]
    level_2 = tables.upper[tables.upper_levels == 2]
    huge = level_2[(level_2 & (_USER_PRESENT | PAGE_PSE | leave_out)) == _USER_PRESENT | PAGE_PSE]
    zero = _first_of_zeros(memory, _by_use((special & PTE_PFN_MASK) >> U64(12)), 1)
    return zero, _first_of_zeros(memory, _by_use((huge & PMD_PFN_MASK) >> U64(12)), 512)


def _by_use(pfns: Words) -> list[int]:
    found, counts = np.unique(pfns, return_counts=True)
    return [int(pfn) for pfn in found[np.argsort(-counts, kind="stable")][:_CANDIDATES]]


def _first_of_zeros(memory: MemorySource, pfns: list[int], pages: int) -> int | None:
    for pfn in pfns:
        content, there = memory.read_pages(np.arange(pfn, pfn + pages, dtype=np.uint64))
        if there.all() and not content.any():
            return pfn
    return None
