"""Runs on the device: the host lists the extents, the device finds stops, counts runs and writes them.

The list follows the page tables, not the addresses, and is one row for 2 MiB of small pages; entries
never leave the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import cuda

from gpuhmm.hmm.walk.constants import may_fault, unpack
from gpuhmm.hmm.walk.extent import KIND_LEAF
from gpuhmm.hmm.walk.pte import ACTION_NONE, pte_stop, pte_word
from gpuhmm.hmm.walk.runs import (
    EXTENT_END,
    EXTENT_KIND,
    EXTENT_ROW,
    EXTENT_START,
    EXTENT_STEP,
    EXTENT_WORD,
    first_page_is_apart,
    next_word,
)
from gpuhmm.kernels.cpu_runs import CpuRunsResolver
from gpuhmm.kernels.device_tables import THREADS, device_tables
from gpuhmm.mm.x86 import INDEX_MASK, ONE, PAGE_SHIFT, U64, ZERO
from gpuhmm.shared import register, shared

if TYPE_CHECKING:
    from gpuhmm.hmm.runs import HmmRuns

_THREADS = U64(THREADS)
_SLOTS = INDEX_MASK + ONE
_PER_THREAD = _SLOTS // _THREADS


@shared("boolean(uint64, uint64, uint64, Array2, uint64, Walk, Array2)")
def begins_run(i, row, slot, leaf, pages, walk, owners):
    """True if page ``i`` of a leaf table's extent does not go on where the one before it ended."""
    if i >= pages:
        return False
    if i == ZERO:
        return True
    before = pte_word(leaf[row, slot + i - ONE], walk, owners)
    return pte_word(leaf[row, slot + i], walk, owners) != next_word(before)


def find_stops(extents, constants, owners, leaf, pages):
    """Lower ``pages`` of each extent to the first page that stops the walk; one block an extent."""
    walk = unpack(constants)
    extent = U64(cuda.blockIdx.x)
    if extents[extent, EXTENT_KIND] == KIND_LEAF:
        row = extents[extent, EXTENT_ROW]
        slot = (extents[extent, EXTENT_START] >> PAGE_SHIFT) & INDEX_MASK
        past = (extents[extent, EXTENT_END] - extents[extent, EXTENT_START]) >> PAGE_SHIFT
        i = U64(cuda.threadIdx.x)
        while i < past:
            if pte_stop(leaf[row, slot + i], ZERO, walk, owners)[0] != ACTION_NONE:
                cuda.atomic.min(pages, extent, i)
            i = i + _THREADS


def count_runs(extents, constants, owners, leaf, pages, counts):
    """Add up the runs of each extent below its stop; one block an extent."""
    walk = unpack(constants)
    extent = U64(cuda.blockIdx.x)
    thread = U64(cuda.threadIdx.x)
    found = ZERO
    if extents[extent, EXTENT_KIND] == KIND_LEAF:
        row = extents[extent, EXTENT_ROW]
        slot = (extents[extent, EXTENT_START] >> PAGE_SHIFT) & INDEX_MASK
        i = thread
        while i < pages[extent]:
            if begins_run(i, row, slot, leaf, pages[extent], walk, owners):
                found = found + ONE
            i = i + _THREADS
    elif thread == ZERO:
        found = ONE
        if pages[extent] > ONE and first_page_is_apart(
            extents[extent, EXTENT_WORD], extents[extent, EXTENT_STEP]
        ):
            found = found + ONE
    if found != ZERO:
        cuda.atomic.add(counts, extent, found)


def write_runs(extents, constants, owners, leaf, pages, ats, runs):
    """Write address and first word of each extent's runs from ``runs[:, ats]`` on; one block an extent.

    Every thread looks at pages side by side; how many runs begin in the threads before it says where
    its own go.
    """
    begun = cuda.shared.array(THREADS, np.uint64)
    walk = unpack(constants)
    extent = U64(cuda.blockIdx.x)
    thread = U64(cuda.threadIdx.x)
    at = ats[extent]
    start = extents[extent, EXTENT_START]
    word = extents[extent, EXTENT_WORD]
    is_leaf = extents[extent, EXTENT_KIND] == KIND_LEAF
    row = extents[extent, EXTENT_ROW]
    slot = (start >> PAGE_SHIFT) & INDEX_MASK
    first = thread * _PER_THREAD
    found = ZERO
    if is_leaf:
        i = first
        while i < first + _PER_THREAD:
            if begins_run(i, row, slot, leaf, pages[extent], walk, owners):
                found = found + ONE
            i = i + ONE
    begun[thread] = found
    cuda.syncthreads()
    if is_leaf:
        before = ZERO
        while before < thread:
            at = at + begun[before]
            before = before + ONE
        i = first
        while i < first + _PER_THREAD:
            if begins_run(i, row, slot, leaf, pages[extent], walk, owners):
                runs[ZERO, at] = start + (i << PAGE_SHIFT)
                runs[ONE, at] = pte_word(leaf[row, slot + i], walk, owners)
                at = at + ONE
            i = i + ONE
    elif thread == ZERO:
        runs[ZERO, at] = start
        runs[ONE, at] = word
        if pages[extent] > ONE and first_page_is_apart(word, extents[extent, EXTENT_STEP]):
            runs[ZERO, at + ONE] = start + (ONE << PAGE_SHIFT)
            runs[ONE, at + ONE] = word + ONE


register()
find_stops_kernel = cuda.jit(find_stops)
count_runs_kernel = cuda.jit(count_runs)
write_runs_kernel = cuda.jit(write_runs)

#: Every kernel with the numba types of its arguments, for the compile gate.
KERNELS = {
    find_stops_kernel: "Array2, Array1, Array2, Array2, Array1",
    count_runs_kernel: "Array2, Array1, Array2, Array2, Array1, Array1",
    write_runs_kernel: "Array2, Array1, Array2, Array2, Array1, Array1, Array2",
}


def runs_resolver(request: HmmRuns) -> CudaRunsResolver:
    """Return what collects the runs of one call."""
    return CudaRunsResolver(request)


class CudaRunsResolver(CpuRunsResolver):
    """Lists extents on the host and leaves every entry to the device."""

    def __init__(self, request: HmmRuns) -> None:
        super().__init__(request)
        self.tables = device_tables(self.mm)
        self.device_constants = cuda.to_device(self.constants)

    def runs_of(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return address and first word of the runs of the listed extents, and their pages below stops."""
        _, _, leaf = self.tables.sync()
        _, owners = self.tables.areas(self.mm)
        extents = cuda.to_device(self.extents[:count])
        bounds = self.extents[:count, :2]
        pages = cuda.to_device((bounds[:, 1] - bounds[:, 0]) >> PAGE_SHIFT)
        tables = (extents, self.device_constants, owners, leaf, pages)
        if may_fault(self.walk):
            find_stops_kernel[count, THREADS](*tables)
        counts = cuda.to_device(np.zeros(count, dtype=np.uint64))
        count_runs_kernel[count, THREADS](*tables, counts)
        counts_here, pages_here = counts.copy_to_host(), pages.copy_to_host()
        count, total = self.below_stop(count, counts_here, pages_here)
        if not total:
            return np.empty((2, 0), dtype=np.uint64), pages_here
        ats = cuda.to_device(np.cumsum(counts_here) - counts_here)
        runs = cuda.device_array((2, total), dtype=np.uint64)
        write_runs_kernel[count, THREADS](*tables, ats, runs)
        return runs.copy_to_host(), pages_here
