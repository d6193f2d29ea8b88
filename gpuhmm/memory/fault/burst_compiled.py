"""First touch and repeated touch of anonymous memory, a table at a time, compiled for the CPU.

What these loops store is what ``gpuhmm.memory.fault`` stores one page at a time;
``tests/memory/test_burst.py`` compares the two.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gpuhmm.kernels.compile_cache import cached
from gpuhmm.memory.pages.page import PG_ANON, PG_ANON_EXCLUSIVE, PG_TABLE
from gpuhmm.mm.x86 import (
    KNL_ERRATUM_MASK,
    ONE,
    PAGE_ACCESSED,
    PAGE_DIRTY,
    PAGE_PRESENT,
    PAGE_RW,
    PAGE_SHIFT,
    PAGE_SOFT_DIRTY,
    U64,
    ZERO,
)
from gpuhmm.shared import register

register()

_TOUCHED = PAGE_ACCESSED | PAGE_DIRTY | PAGE_SOFT_DIRTY
_ANON = np.uint16(PG_ANON | PG_ANON_EXCLUSIVE)
_TABLE = np.uint16(PG_TABLE)
_MAPPED = np.int32(1)
_PTES = U64(512)
_FRAMES = U64(513)


def _touch(
    ptes, write, empty, zero_pte, fresh_flags, pfn, npfns, refcount, mapcount, flags, index, base, page
):
    """Serve one fault at each of ``ptes`` in turn; return (faults served, frames used).

    ``empty``: none entries may be filled: by ``zero_pte`` for a read, for a write by the frames from
    ``pfn`` on, of which there are ``npfns`` and whose descriptors begin at ``base`` of the given arrays.
    ``page`` is the index of the first address.  Stops at the first entry that needs anything else.
    """
    used = ZERO
    for i in range(len(ptes)):
        pte = ptes[i]
        if (pte & ~KNL_ERRATUM_MASK) == ZERO:
            if not empty:
                return i, used
            if not write:
                ptes[i] = zero_pte
                continue
            if used == npfns:
                return i, used
            ptes[i] = ((pfn + used) << PAGE_SHIFT) | fresh_flags
            at = base + used
            refcount[at] = _MAPPED
            mapcount[at] = _MAPPED
            flags[at] = _ANON
            index[at] = page + U64(i)
            used += ONE
        elif (pte & PAGE_PRESENT) == ZERO:
            return i, used
        elif write:
            if (pte & PAGE_RW) == ZERO:
                return i, used
            ptes[i] = pte | _TOUCHED
    return len(ptes), used


def _fill_tables(leaves, pfn, fresh_flags):
    """Fill leaf tables: table i is frame ``pfn + 513 * i``, its 512 pages are the frames after it."""
    for i in range(leaves.shape[0]):
        entry = ((pfn + U64(i) * _FRAMES + ONE) << PAGE_SHIFT) | fresh_flags
        for j in range(512):
            leaves[i, j] = entry + (U64(j) << PAGE_SHIFT)


def _describe_tables(refcount, mapcount, flags, index, before, page):
    """Write the descriptors of such frames; ``before`` is how many came before the first of these arrays."""
    count = len(refcount)
    table = before // _FRAMES
    at = 0
    place = before - table * _FRAMES
    while at < count:
        if place == ZERO:
            refcount[at] = _MAPPED
            flags[at] = _TABLE
            at += 1
            place = ONE
            continue
        pages = min(np.int64(_FRAMES - place), count - at)
        first = page + table * _PTES + place - ONE
        for i in range(pages):
            refcount[at + i] = _MAPPED
            mapcount[at + i] = _MAPPED
            flags[at + i] = _ANON
            index[at + i] = first + U64(i)
        at += pages
        place = ZERO
        table += ONE


touch = cached(njit(_touch))
fill_tables = cached(njit(_fill_tables))
describe_tables = cached(njit(_describe_tables))
