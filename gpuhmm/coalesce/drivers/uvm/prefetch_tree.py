"""The prefetch tree of a VA block, compiled and plain from one source.

Masks are uint8[512], one a page of a block that is aligned to 2 MiB.  The tree is a mask as well: leaf
``page - first + offset`` stands for a page, and a node for the leaves below it, of which the last node
of a level may have fewer.  What leaves a node has set is the difference of two ``sums``, uint64[513].

Source: uvm_perf_prefetch.c:compute_prefetch_region, grow_fault_granularity, init_bitmap_tree_from_region,
update_bitmap_tree_from_va_block, compute_prefetch_mask; uvm_perf_utils.h:uvm_perf_tree_iter_*;
uvm_va_block.c:range_big_page_region_all (NVIDIA UVM 595.45.04).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuhmm.mm.x86 import ONE, U64, ZERO, Truth
from gpuhmm.shared import shared

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

#: Pages of a VA block.
BLOCK_PAGES = 512

_BIG_PAGES = U64(16)  # of 4 KiB in a big page
_BIG_MASK = U64(15)
_HUNDRED = U64(100)
_SET = np.uint8(1)


@shared("boolean(uint64, uint64, Bytes1)")
def any_set(first: np.uint64, outer: np.uint64, mask: Bytes) -> Truth:
    """True if a page of ``[first, outer)`` is in the mask."""
    page = first
    while page < outer:
        if mask[page] != 0:
            return True
        page = page + ONE
    return False


@shared("void(uint64, uint64, Bytes1)")
def set_pages(first: np.uint64, outer: np.uint64, mask: Bytes) -> None:
    """Put ``[first, outer)`` into the mask."""
    page = first
    while page < outer:
        mask[page] = _SET
        page = page + ONE


@shared("uint64(uint64, uint64)")
def tree_offset(first: np.uint64, outer: np.uint64) -> np.uint64:
    """Return how many leaves lie before that of ``first``, so that big pages are whole nodes.

    Without a whole big page in ``[first, outer)`` there are none.
    """
    big_first = (first + _BIG_MASK) & ~_BIG_MASK
    big_outer = outer & ~_BIG_MASK
    if big_outer <= big_first:
        return ZERO
    return first & _BIG_MASK


@shared("void(uint64, uint64, uint64, uint64, Bytes1, Bytes1, Bytes1)")
def grow_region(
    low: np.uint64,
    high: np.uint64,
    first: np.uint64,
    offset: np.uint64,
    faulted: Bytes,
    thrashing: Bytes,
    tree: Bytes,
) -> None:
    """Set all leaves of the pages ``[low, high)`` if one of them faulted and none is thrashing."""
    if any_set(low, high, faulted) and not any_set(low, high, thrashing):
        set_pages(low - first + offset, high - first + offset, tree)


@shared("void(uint64, uint64, uint64, Bytes1, Bytes1, Bytes1)")
def grow_faults(
    first: np.uint64, outer: np.uint64, offset: np.uint64, faulted: Bytes, thrashing: Bytes, tree: Bytes
) -> None:
    """Grow faults to big pages, and what lies before the first and after the last of them as a whole."""
    big_first = (first + _BIG_MASK) & ~_BIG_MASK
    big_outer = outer & ~_BIG_MASK
    if big_outer <= big_first:
        grow_region(first, outer, first, offset, faulted, thrashing, tree)
        return
    if big_first > first:
        grow_region(first, big_first, first, offset, faulted, thrashing, tree)
    page = big_first
    while page < big_outer:
        grow_region(page, page + _BIG_PAGES, first, offset, faulted, thrashing, tree)
        page = page + _BIG_PAGES
    if big_outer < outer:
        grow_region(big_outer, outer, first, offset, faulted, thrashing, tree)


@shared("uint64(uint64, uint64, uint64, Array1)")
def qualifying_node(leaf: np.uint64, leaves: np.uint64, threshold: np.uint64, sums: Words) -> np.uint64:
    """Return the size, as a power of two, of the largest node over ``leaf`` that qualifies; 0 for none.

    A node qualifies if more than ``threshold`` percent of its leaves are set, whether or not the nodes
    below it do.
    """
    found = ZERO
    size = ONE
    while True:
        low = leaf & ~(size - ONE)
        high = min(low + size, leaves)
        if (sums[high] - sums[low]) * _HUNDRED > (high - low) * threshold:
            found = size
        if size >= leaves:
            return found
        size = size + size


@shared("void(uint64, uint64, uint64, Bytes1, Bytes1, Bytes1, Bytes1, Array1, Bytes1)")
def prefetch_pages(
    first: np.uint64,
    outer: np.uint64,
    threshold: np.uint64,
    faulted: Bytes,
    resident: Bytes,
    thrashing: Bytes,
    tree: Bytes,
    sums: Words,
    pages: Bytes,
) -> None:
    """Put what faults on ``faulted`` pages prefetch out of ``[first, outer)`` into ``pages``.

    ``tree`` and ``sums`` are scratch; all four that are written must be zero.  Faulted pages must lie in
    the region.
    """
    offset = tree_offset(first, outer)
    leaves = outer - first + offset
    page = first
    while page < outer:
        if (resident[page] | faulted[page]) != 0:
            tree[page - first + offset] = _SET
        page = page + ONE
    grow_faults(first, outer, offset, faulted, thrashing, tree)
    leaf = ZERO
    while leaf < leaves:
        sums[leaf + ONE] = sums[leaf] + U64(tree[leaf])
        leaf = leaf + ONE

    page = first
    while page < outer:
        if faulted[page] != 0 and thrashing[page] == 0:
            size = qualifying_node(page - first + offset, leaves, threshold, sums)
            if size != ZERO:
                low = (page - first + offset) & ~(size - ONE)
                high = min(low + size, leaves)
                # The leaves before the first page stand for nothing.
                set_pages(max(low, offset) + first - offset, high + first - offset, pages)
                if high == leaves:
                    break  # the rest of the faults can only name parts of this again
        page = page + ONE

    page = first
    while page < outer:
        if (faulted[page] | thrashing[page]) != 0:
            pages[page] = np.uint8(0)
        page = page + ONE
