"""Runs on the CPU: extents are listed in order, their runs counted and written in parallel.

The list follows the page tables, not the addresses: a hole is one entry of it, whatever its size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit, prange

from gpuhmm.hmm.runs import joined
from gpuhmm.hmm.settle import Stop
from gpuhmm.hmm.walk.arrays import Arrays, host_arrays
from gpuhmm.hmm.walk.constants import Walk, may_fault, unpack, walk_constants
from gpuhmm.hmm.walk.extent import KIND_LEAF, extent_at
from gpuhmm.hmm.walk.pte import ACTION_NONE, pte_stop, pte_word
from gpuhmm.hmm.walk.runs import (
    EXTENT_COLUMNS,
    EXTENT_END,
    EXTENT_KIND,
    EXTENT_ROW,
    EXTENT_START,
    EXTENT_STEP,
    EXTENT_WORD,
    extent_stops,
    first_page_is_apart,
    next_word,
    store_extent,
)
from gpuhmm.hmm.walk.span import NO_STOP
from gpuhmm.kernels.compile_cache import cached
from gpuhmm.kernels.cpu import describe, extent_end
from gpuhmm.kernels.paths import on_one_thread
from gpuhmm.mm.x86 import INDEX_MASK, ONE, PAGE_SHIFT, U64, ZERO
from gpuhmm.shared import register

if TYPE_CHECKING:
    from gpuhmm.hmm.runs import HmmRuns

register()

#: Extents that are listed at once: 16 MiB of runs if every page is one.
_EXTENTS = 1 << 10

#: Up to this many small pages, less than a millisecond's work, one thread does it: others must be woken.
_SEQUENTIAL_PAGES = 1 << 16


def _list_extents(first, past, constants, vmas, owners, upper, child, leaf, hmm_pfns, extents):
    """List the extents of ``[first, past)``; return how many, where the list ends, and the first stop."""
    walk = unpack(constants)
    arrays = Arrays(vmas, owners, upper, child, leaf, hmm_pfns)
    count = ZERO
    va = first
    while va < past and count < U64(extents.shape[0]):
        extent = extent_at(va, first, walk, arrays)
        if extent_stops(extent, walk):
            return count, va, va
        store_extent(extent, count, extents)
        count = count + ONE
        va = extent.end
    return count, va, NO_STOP


def _leaf_runs(extent, constants, owners, leaf, runs, at):
    """Write the runs of a leaf table's extent from ``runs[:, at]`` on; return how many, and its stop.

    With ``runs`` of no columns they are counted only.
    """
    walk = unpack(constants)
    row = extent[EXTENT_ROW]
    slot = (extent[EXTENT_START] >> PAGE_SHIFT) & INDEX_MASK
    pages = (extent[EXTENT_END] - extent[EXTENT_START]) >> PAGE_SHIFT
    writes = runs.shape[1] > 0
    stops = may_fault(walk)
    count = ZERO
    expected = ZERO
    for i in range(pages):
        pte = leaf[row, slot + i]
        if stops and pte_stop(pte, ZERO, walk, owners)[0] != ACTION_NONE:
            return count, i
        word = pte_word(pte, walk, owners)
        if i == ZERO or word != expected:
            if writes:
                runs[ZERO, at + count] = extent[EXTENT_START] + (i << PAGE_SHIFT)
                runs[ONE, at + count] = word
            count = count + ONE
        expected = next_word(word)
    return count, pages


_leaf_runs = njit(_leaf_runs)


def _count(extents, count, constants, owners, leaf, counts, pages):
    """Write the runs of each extent, counted, and the pages of it below its stop."""
    nothing = np.empty((3, 0), dtype=np.uint64)
    for i in prange(count):
        extent = extents[U64(i)]
        if extent[EXTENT_KIND] == KIND_LEAF:
            counts[i], pages[i] = _leaf_runs(extent, constants, owners, leaf, nothing, ZERO)
        else:
            pages[i] = (extent[EXTENT_END] - extent[EXTENT_START]) >> PAGE_SHIFT
            counts[i] = ONE
            if pages[i] > ONE and first_page_is_apart(extent[EXTENT_WORD], extent[EXTENT_STEP]):
                counts[i] = ONE + ONE


def _write(extents, count, constants, owners, leaf, ats, pages, runs):
    """Write address and first word of each extent's runs from ``runs[:, ats[i]]`` on."""
    for i in prange(count):
        extent = extents[U64(i)]
        at = ats[i]
        if extent[EXTENT_KIND] == KIND_LEAF:
            _leaf_runs(extent, constants, owners, leaf, runs, at)
        else:
            start, word = extent[EXTENT_START], extent[EXTENT_WORD]
            runs[ZERO, at] = start
            runs[ONE, at] = word
            if pages[i] > ONE and first_page_is_apart(word, extent[EXTENT_STEP]):
                runs[ZERO, at + ONE] = start + (ONE << PAGE_SHIFT)
                runs[ONE, at + ONE] = word + ONE


list_extents = cached(njit(_list_extents))
count_sequential = cached(njit(_count))
count_parallel = cached(njit(_count, parallel=True))
write_sequential = cached(njit(_write))
write_parallel = cached(njit(_write, parallel=True))


def runs_resolver(request: HmmRuns) -> CpuRunsResolver:
    """Return what collects the runs of one call."""
    return CpuRunsResolver(request)


class CpuRunsResolver:
    """Collects the runs of one call; see :class:`gpuhmm.hmm.settle.Resolver`."""

    def __init__(self, request: HmmRuns) -> None:
        self.request = request
        self.mm = request.notifier.mm
        self.constants = walk_constants(request)
        self.walk = Walk(*self.constants)
        self.first_wave = self.max_wave = max(request.npages, 1)
        self.extents = np.empty((_EXTENTS, EXTENT_COLUMNS), dtype=np.uint64)
        self.pieces: list[np.ndarray] = []

    def wave_end(self, va: int) -> int:
        """Return the end of the extent that ``va - 1`` lies in: extents are listed whole."""
        return int(extent_end(U64(va - 4096), self.constants, *host_arrays(self.mm)))

    def resolve(self, first: int, past: int) -> Stop | None:
        """Collect the runs of ``[first, past)`` below the first stop."""
        state = (self.constants, *host_arrays(self.mm))
        va = first
        while va < past:
            count, listed, stop = list_extents(U64(va), U64(past), *state, self.extents)
            stop = min(int(stop), self._collect(int(count)))
            if stop != int(NO_STOP):
                return Stop(stop, *map(int, describe(U64(stop), *state)))
            va = int(listed)
        return None

    def finish(self, past: int) -> None:
        """Leave the runs below ``past`` with the request."""
        self.request.runs = joined(self.pieces, past, self.mm.kernel)

    def runs_of(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return address and first word of the runs of the listed extents, and their pages below stops.

        uint64[2, runs] of all extents up to the first that stops, and uint64[count].
        """
        leaf, owners = self.mm.page_tables.leaf, self.mm.device_private
        counts = np.empty(count, dtype=np.uint64)
        pages = np.empty(count, dtype=np.uint64)
        listed = self.extents[:count]
        leaves = listed[listed[:, EXTENT_KIND] == KIND_LEAF]
        small_pages = int((leaves[:, EXTENT_END] - leaves[:, EXTENT_START]).sum()) >> 12
        small = on_one_thread(small_pages, _SEQUENTIAL_PAGES)
        count_runs = count_sequential if small else count_parallel
        write_runs = write_sequential if small else write_parallel
        count_runs(self.extents, count, self.constants, owners, leaf, counts, pages)
        count, total = self.below_stop(count, counts, pages)
        runs = np.empty((2, total), dtype=np.uint64)
        if total:
            ats = np.cumsum(counts) - counts
            write_runs(self.extents, count, self.constants, owners, leaf, ats, pages, runs)
        return runs, pages

    def below_stop(self, count: int, counts: np.ndarray, pages: np.ndarray) -> tuple[int, int]:
        """Return how many extents there are up to the first that stops, and their runs.

        What lies above is walked again, after the stop was served.
        """
        short = self._short(count, pages)
        if len(short):
            count = int(short[0]) + 1
        return count, int(counts[:count].sum())

    def _short(self, count: int, pages: np.ndarray) -> np.ndarray:
        bounds = self.extents[:count, :2]
        return np.flatnonzero(pages[:count] < (bounds[:, 1] - bounds[:, 0]) >> PAGE_SHIFT)

    def _collect(self, count: int) -> int:
        """Keep the runs of the listed extents; return the first stop inside them, or NO_STOP."""
        if not count:
            return int(NO_STOP)
        runs, pages = self.runs_of(count)
        self.pieces.append(runs)
        short = self._short(count, pages)
        if not len(short):
            return int(NO_STOP)
        return int(self.extents[short[0], EXTENT_START] + (pages[short[0]] << PAGE_SHIFT))
