"""A batch on the device: all ranges in one launch, a block for each 2 MiB slot of each range."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import cuda

from gpuhmm.hmm.walk.arrays import Arrays
from gpuhmm.hmm.walk.constants import Walk, asks_by_page, for_range, may_fault, unpack, walk_constants
from gpuhmm.hmm.walk.extent import KIND_FILL_FIRST, KIND_FORCED, KIND_LEAF, extent_at
from gpuhmm.hmm.walk.pte import ACTION_NONE, pte_stop, pte_word
from gpuhmm.hmm.words import hmm_pte_need_fault
from gpuhmm.kernels.device_tables import THREADS, device_tables, to_device
from gpuhmm.mm.x86 import INDEX_MASK, ONE, PAGE_SHIFT, PMD_SHIFT, U64, ZERO
from gpuhmm.shared import register

if TYPE_CHECKING:
    from gpuhmm.hmm.batch import HmmRangeBatch

_THREADS = U64(THREADS)


def resolve_ranges(
    slots,
    slot_ranges,
    starts,
    ends,
    offsets,
    constants,
    vmas,
    owners,
    upper,
    child,
    leaf,
    hmm_pfns,
    words,
    stops,
):
    """Write the words of one slot of one range, and mark the range in ``stops`` if its walk stops there.

    ``slots`` are the slots' first addresses, ``slot_ranges`` whose they are.
    """
    slot = U64(cuda.blockIdx.x)
    index = U64(cuda.threadIdx.x)
    own = slot_ranges[slot]
    walk = for_range(unpack(constants), starts[own], ends[own])
    arrays = Arrays(vmas, owners, upper, child, leaf, hmm_pfns)
    while index <= INDEX_MASK:
        va = slots[slot] + (index << PAGE_SHIFT)
        index = index + _THREADS
        if va >= walk.start and va < walk.end:
            extent = extent_at(va, walk.start, walk, arrays)
            page = offsets[own] + ((va - walk.start) >> PAGE_SHIFT)
            request = ZERO
            if asks_by_page(walk):
                asking = page
                if extent.kind == KIND_FILL_FIRST:
                    asking = offsets[own] + ((extent.start - walk.start) >> PAGE_SHIFT)
                request = hmm_pfns[asking]
            stopped = False
            if extent.kind == KIND_LEAF:
                pte = leaf[extent.row, (va >> PAGE_SHIFT) & INDEX_MASK]
                words[page] = pte_word(pte, walk, owners)
                stopped = may_fault(walk) and pte_stop(pte, request, walk, owners)[0] != ACTION_NONE
            elif extent.kind == KIND_FORCED:
                stopped = True
            else:
                words[page] = extent.word + ((va - extent.start) >> PAGE_SHIFT) * extent.step
                need = hmm_pte_need_fault(request, extent.cpu_flags, walk.default_flags, walk.pfn_flags_mask)
                stopped = need != ZERO
            if stopped:
                stops[own] = ONE


register()
resolve_ranges_kernel = cuda.jit(resolve_ranges)

#: The kernel with the numba types of its arguments, for the compile gate.
KERNELS = {
    resolve_ranges_kernel: (
        "Array1, Array1, Array1, Array1, Array1, Array1, Array2, Array2, Array2, ChildArray, Array2, Array1, "
        "Array1, Array1"
    ),
}


def batch_resolver(batch: HmmRangeBatch) -> CudaBatchResolver:
    """Return what resolves the ranges of ``batch``."""
    return CudaBatchResolver(batch)


class CudaBatchResolver:
    """Resolves ranges of one batch; see :class:`gpuhmm.hmm.batch.BatchResolver`."""

    def __init__(self, batch: HmmRangeBatch) -> None:
        self.batch = batch
        self.mm = batch.notifier.mm
        constants = walk_constants(batch)
        self.constants = cuda.to_device(constants)
        self.tables = device_tables(self.mm)
        total = max(len(batch.hmm_pfns), 1)
        self.words = cuda.device_array(total, dtype=np.uint64)
        self.starts, self.ends = to_device(batch.starts), to_device(batch.ends)
        self.offsets = to_device(batch.offsets.astype(np.uint64))
        asks = asks_by_page(Walk(*constants))
        self.inputs = to_device(batch.hmm_pfns) if asks else self.words

    def resolve(self, first: int, past: int) -> int:
        """Write the words of ranges ``first`` up to the first that stops; return which, or ``past``."""
        batch = self.batch
        slots, slot_ranges = _slots(batch.starts[first:past], batch.ends[first:past])
        if not len(slots):
            return past
        upper, child, leaf = self.tables.sync()
        vmas, owners = self.tables.areas(self.mm)
        stops = cuda.to_device(np.zeros(len(batch), dtype=np.uint64))
        resolve_ranges_kernel[len(slots), THREADS](
            cuda.to_device(slots),
            cuda.to_device(slot_ranges + np.uint64(first)),
            self.starts,
            self.ends,
            self.offsets,
            self.constants,
            vmas,
            owners,
            upper,
            child,
            leaf,
            self.inputs,
            self.words,
            stops,
        )
        stopped = np.flatnonzero(stops.copy_to_host()[first:past])
        stop = first + int(stopped[0]) if len(stopped) else past
        low, high = int(batch.offsets[first]), int(batch.offsets[stop])
        if low < high:
            self.words[low:high].copy_to_host(batch.hmm_pfns[low:high])
        return stop


def _slots(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first address of every 2 MiB slot of every range, and whose it is: uint64[n] each."""
    bases = starts >> PMD_SHIFT
    counts = np.where(starts < ends, ((ends - ONE) >> PMD_SHIFT) - bases + ONE, ZERO).astype(np.int64)
    ranges = np.repeat(np.arange(len(starts)), counts)
    inside = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return (bases[ranges] + inside.astype(np.uint64)) << PMD_SHIFT, ranges.astype(np.uint64)
