"""What UVM prefetches in a VA block in addition to the pages that faulted.

Source: uvm_perf_prefetch.c:uvm_perf_prefetch_prenotify_fault_migrations, should_apply_prefetch_logic,
uvm_perf_prefetch_get_hint_va_block (NVIDIA UVM 595.45.04), without confidential computing and range groups.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.drivers.uvm import prefetch_tree
from gpuhmm.coalesce.drivers.uvm.prefetch_tree import BLOCK_PAGES
from gpuhmm.mm.x86 import U64

#: A node is prefetched when more than this many percent of its pages are resident or faulted.
THRESHOLD = 51
#: Pages that must have migrated to the same processor in a row, and the most that the driver takes.
MIN_FAULTS = 1
MAX_MIN_FAULTS = 20

Mask = npt.NDArray[np.bool_]


def prefetch_mask(
    faulted: Mask,
    resident: Mask | None = None,
    thrashing: Mask | None = None,
    *,
    first: int = 0,
    outer: int = BLOCK_PAGES,
    threshold: int = THRESHOLD,
    compiled: bool = True,
) -> Mask:
    """Return the pages that the tree prefetches for faults on ``faulted``: bool[512].

    All masks are bool[512], a page of 4 KiB of the block each; None is an empty one.  ``resident`` is
    what the faulting processor has; ``[first, outer)`` are the pages that may be prefetched: for an HMM
    block those of the VMA and of one policy, else the block.  ``threshold`` is in percent, 0 to 100.

    Faulted and thrashing pages are left out of the result.  Resident ones are not, as in the driver: a
    node is named as a whole, and nothing moves for what is there.  The block begins at a multiple of
    2 MiB; the driver's clamping of regions in blocks that do not begin at a big page is not modelled.
    ``compiled`` False runs the same statements in Python.

    TypeError and ValueError for masks of other types and shapes, faulted pages outside of the region,
    and numbers out of range.
    """
    if not 0 <= first < outer <= BLOCK_PAGES:
        raise ValueError(
            f"a region must not be empty and lie in {BLOCK_PAGES} pages (got {first} to {outer})"
        )
    if not 0 <= threshold <= 100:
        raise ValueError(f"threshold must be 0 to 100 percent (got {threshold})")
    masks = [
        _bytes(name, mask)
        for name, mask in (("faulted", faulted), ("resident", resident), ("thrashing", thrashing))
    ]
    if masks[0][:first].any() or masks[0][outer:].any():
        raise ValueError(f"faulted pages must lie in the region {first} to {outer}")
    tree = np.zeros(BLOCK_PAGES, dtype=np.uint8)
    sums = np.zeros(BLOCK_PAGES + 1, dtype=np.uint64)
    pages = np.zeros(BLOCK_PAGES, dtype=np.uint8)
    run: Any = prefetch_tree.prefetch_pages
    if compiled:
        run = importlib.import_module("gpuhmm.coalesce.drivers.uvm.prefetch_compiled").prefetch_pages
    run(U64(first), U64(outer), U64(threshold), *masks, tree, sums, pages)
    return pages.view(np.bool_)


class BlockPrefetch:
    """What a VA block remembers between faults: to whom its pages migrated last, and how many did."""

    def __init__(self, min_faults: int = MIN_FAULTS, threshold: int = THRESHOLD) -> None:
        if not MIN_FAULTS <= min_faults <= MAX_MIN_FAULTS:
            raise ValueError(f"min_faults must be {MIN_FAULTS} to {MAX_MIN_FAULTS} (got {min_faults})")
        self.min_faults = min_faults
        self.threshold = threshold
        self.last_processor: int | None = None
        self.migrations = 0

    def hint(
        self,
        processor: int,
        faulted: Mask,
        resident: Mask | None = None,
        thrashing: Mask | None = None,
        *,
        first: int = 0,
        outer: int = BLOCK_PAGES,
        preferred: int | None = None,
        resident_anywhere: bool = True,
    ) -> Mask:
        """Return the pages to prefetch with ``faulted``, which migrate to ``processor``: bool[512].

        The driver asks only where all faults of a batch on the block go to one processor.
        Nothing is prefetched out of the ``preferred`` location.  Faults on a block without a resident page
        anywhere that migrate to the preferred location bring the whole region.  Other arguments
        and errors are those of :func:`prefetch_mask`.
        """
        pages = prefetch_mask(
            faulted, resident, thrashing, first=first, outer=outer, threshold=self.threshold
        )
        if self.last_processor != processor:
            self.last_processor = processor
            self.migrations = 0
        if preferred == processor and not resident_anywhere:
            pages[first:outer] = True
            pages &= ~faulted
            if thrashing is not None:
                pages &= ~thrashing
        elif preferred not in (None, processor):
            pages[:] = False
        self.migrations += int(np.count_nonzero(faulted))
        if self.migrations < self.min_faults:
            pages[:] = False
        return pages


def _bytes(name: str, mask: Mask | None) -> npt.NDArray[np.uint8]:
    if mask is None:
        return np.zeros(BLOCK_PAGES, dtype=np.uint8)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f"{name} must be a numpy array of bool (got {getattr(mask, 'dtype', type(mask))})")
    if mask.shape != (BLOCK_PAGES,):
        raise ValueError(f"{name} must have the shape ({BLOCK_PAGES},) (got {mask.shape})")
    return np.ascontiguousarray(mask).view(np.uint8)
