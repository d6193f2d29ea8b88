"""Walks as one would write them without this package: page by page, and with NumPy.

They handle 4 KiB pages that are present or not, and nothing else; that is what makes them short.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from gpuhmm.hmm.words import HMM_PFN_VALID
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.tables import Words
from gpuhmm.mm.x86 import (
    INDEX_MASK,
    P4D_SHIFT,
    PAGE_PRESENT,
    PAGE_RW,
    PAGE_SHIFT,
    PMD_SHIFT,
    PTE_PFN_MASK,
    PUD_SHIFT,
    U64,
    ZERO,
)

_RW_TO_WRITE = U64(61)


def numpy_walk(mm: AddressSpace, start: int, words: Words) -> None:
    """Gather level by level, for all pages at once."""
    tables = mm.page_tables
    vas = np.uint64(start) + (np.arange(len(words), dtype=np.uint64) << PAGE_SHIFT)
    rows = np.zeros(len(words), dtype=np.int32)
    for shift in (P4D_SHIFT, PUD_SHIFT, PMD_SHIFT):
        rows = tables.child[rows, (vas >> shift) & INDEX_MASK]
    ptes = tables.leaf[rows, (vas >> PAGE_SHIFT) & INDEX_MASK]
    write = (ptes & PAGE_RW) << _RW_TO_WRITE
    present = (ptes & PTE_PFN_MASK) >> PAGE_SHIFT | HMM_PFN_VALID | write
    words[:] = np.where((ptes & PAGE_PRESENT) != 0, present, ZERO)


@njit(parallel=True)
def _per_page(start, child, leaf, words):
    for i in prange(words.size):
        va = start + (U64(i) << PAGE_SHIFT)
        row = child[0, (va >> P4D_SHIFT) & INDEX_MASK]
        row = child[row, (va >> PUD_SHIFT) & INDEX_MASK]
        row = child[row, (va >> PMD_SHIFT) & INDEX_MASK]
        pte = leaf[row, (va >> PAGE_SHIFT) & INDEX_MASK]
        word = ZERO
        if (pte & PAGE_PRESENT) != ZERO:
            word = ((pte & PTE_PFN_MASK) >> PAGE_SHIFT) | HMM_PFN_VALID
            if (pte & PAGE_RW) != ZERO:
                word = word | (PAGE_RW << _RW_TO_WRITE)
        words[i] = word


def numba_walk(mm: AddressSpace, start: int, words: Words) -> None:
    """Walk four levels for every page, in parallel."""
    _per_page(U64(start), mm.page_tables.child, mm.page_tables.leaf, words)


#: Name -> walk; the workloads that all of them can do.
PEERS = {"numpy, level by level": numpy_walk, "numba, page by page": numba_walk}
PEER_WORKLOADS = ("dense-4k", "sparse")
