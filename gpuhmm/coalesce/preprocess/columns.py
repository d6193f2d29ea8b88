"""Sorting and counting merged faults by whole columns, over the arrays of NumPy or CuPy.

``xp`` is the module of the arrays.  Only what both modules have is used.
"""

from __future__ import annotations

from typing import Any

from gpuhmm.coalesce.preprocess.merge import PAGE_BITS, RANK_BITS
from gpuhmm.coalesce.preprocess.table import DUPLICATE, NEW_WINDOW
from gpuhmm.mm.x86 import PAGE_SHIFT

#: Bits of a µTLB number below a page, and of a number of faults below a batch.
_UTLB_BITS = 16
_COUNT_BITS = 32


def unmerged(xp: Any, batch: int, access: Any) -> tuple[Any, Any, Any]:
    """Return representative, instances and masks of faults of which none merges."""
    representative = (xp.arange(len(access), dtype=xp.int64) % batch).astype(xp.uint16)
    masks = xp.left_shift(xp.uint8(1), access).astype(xp.uint8)
    return representative, xp.ones(len(access), dtype=xp.uint32), masks


def sorted_batches(
    xp: Any,
    batch: int,
    shift: int,
    ranks: Any,
    columns: tuple[Any, Any, Any, Any],
    merged: tuple[Any, Any, Any],
) -> tuple[Any, Any, Any, Any, Any]:
    """Return index, instances, masks and flags of the sorted representatives, and the counts of batches.

    ``columns`` are va, access, space and utlb of faults whose first begins a batch, at least one;
    ``merged`` their representative, instances and masks; ``shift`` pages of a window as a power of two;
    ``ranks`` uint8[5].  What comes back is as in :class:`gpuhmm.coalesce.preprocess.table.BatchTable`.
    """
    va, access, space, utlb = columns
    representative, instances, masks = merged
    rows = xp.arange(len(va), dtype=xp.int64)
    batches = -(-len(va) // batch)
    raw = xp.bincount(rows // batch, minlength=batches)

    left = xp.flatnonzero(representative == (rows % batch).astype(xp.uint16))
    pages = (space[left].astype(xp.uint64) << PAGE_BITS) | (va[left] >> PAGE_SHIFT)
    keys = (pages << RANK_BITS) | ranks[access[left]].astype(xp.uint64)
    # The row is a key as well: equal faults keep their order whatever sort the module uses.
    order = xp.lexsort(xp.stack((left.astype(xp.uint64), keys, (left // batch).astype(xp.uint64))))
    left = left[order]
    pages = pages[order]
    number = left // batch
    new_batch = _differs(xp, number)
    new_page = new_batch | _differs(xp, pages)
    new_window = new_batch | _differs(xp, pages >> xp.uint64(shift))
    flags = xp.where(new_page, 0, DUPLICATE) + xp.where(new_window, NEW_WINDOW, 0)
    coalesced = xp.bincount(number, minlength=batches)
    firsts = _ends(xp, coalesced)
    surplus = _ends(xp, instances[left].astype(xp.int64) - new_page)

    page_of = xp.zeros(len(va), dtype=xp.int64)
    page_of[left] = xp.cumsum(new_page) - 1
    page = page_of[rows - rows % batch + representative.astype(xp.int64)]
    batch_of_page = number[new_page]
    pair = xp.sort((page << _UTLB_BITS) | utlb.astype(xp.int64))
    pairs = xp.bincount(batch_of_page[pair[_differs(xp, pair)] >> _UTLB_BITS], minlength=batches)
    unique = xp.bincount(batch_of_page, minlength=batches)

    batch_of_window = number[new_window]
    windows = xp.bincount(batch_of_window, minlength=batches)
    window_of_page = (xp.cumsum(new_window) - 1)[new_page]
    here = xp.bincount(window_of_page[page], minlength=len(batch_of_window))
    # The last of each batch has the most faults.
    most = xp.sort((batch_of_window << _COUNT_BITS) | here)[xp.cumsum(windows) - 1] & ((1 << _COUNT_BITS) - 1)

    counts = (
        raw,
        coalesced,
        unique,
        raw - pairs,
        pairs - unique,
        windows,
        most,
        surplus[firsts[1:]] - surplus[firsts[:-1]],
    )
    return (
        (left % batch).astype(xp.uint16),
        instances[left],
        masks[left],
        flags.astype(xp.uint8),
        xp.stack(counts).astype(xp.uint32),
    )


def _differs(xp: Any, column: Any) -> Any:
    """Return where a value differs from the one before; the first does."""
    differs = xp.ones(len(column), dtype=xp.bool_)
    differs[1:] = column[1:] != column[:-1]
    return differs


def _ends(xp: Any, sizes: Any) -> Any:
    """Return 0 and the sums up to each of the sizes: int64[n + 1]."""
    ends = xp.zeros(len(sizes) + 1, dtype=xp.int64)
    ends[1:] = xp.cumsum(sizes)
    return ends
