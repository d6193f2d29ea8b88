"""The CPU back end: the shared decisions over 2 MiB slots, in parallel with numba.

Words are written in place.  Where the walk can stop, a slot is written only once no slot below it can stop
any more, so that inputs above a stop are never touched; until then the words of its table are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import get_num_threads, njit, prange

from gpuhmm.hmm.settle import Stop
from gpuhmm.hmm.walk.arrays import Arrays, host_arrays
from gpuhmm.hmm.walk.constants import Walk, asks_by_page, may_fault, unpack, walk_constants
from gpuhmm.hmm.walk.extent import extent_at
from gpuhmm.hmm.walk.span import NO_STOP, describe_stop
from gpuhmm.kernels.compile_cache import cached
from gpuhmm.kernels.cpu_turns import APART, KEPT_TABLES, look_and_write, nr_slots, write_piece, write_rest
from gpuhmm.kernels.paths import goes_past_caches, on_one_thread
from gpuhmm.mm.x86 import ONE, U64
from gpuhmm.shared import register

if TYPE_CHECKING:
    from gpuhmm.hmm.ranges import HmmRange

register()

#: Ranges up to this many pages run on one thread.  To wake a second one took 29 µs where a page takes one
#: 0.95 ns: it pays from 62,000 pages on.
_SEQUENTIAL_PAGES = 1 << 16
#: Slots of 2 MiB that a thread looks at in one go where the walk can stop.  Neighbours in short turns get
#: in the way of each other's prefetches; in long ones the entries leave the cache before they are used.
_RUN = U64(64)


def _resolve(
    first,
    past,
    nr_threads,
    longest_run,
    past_caches,
    constants,
    vmas,
    owners,
    upper,
    child,
    leaf,
    hmm_pfns,
):
    """Write the words of ``[first, past)`` below the first stop; return its address or NO_STOP."""
    threads = U64(nr_threads)
    stops = np.empty(nr_threads, dtype=np.uint64)
    stop = NO_STOP
    if not may_fault(unpack(constants)):
        for i in prange(nr_threads):
            stops[i] = write_piece(
                U64(i),
                threads,
                first,
                past,
                past_caches,
                constants,
                vmas,
                owners,
                upper,
                child,
                leaf,
                hmm_pfns,
            )
        for i in range(nr_threads):
            stop = min(stop, stops[i])
        return stop
    run = min((nr_slots(first, past) + threads - ONE) // threads, longest_run)
    written = np.zeros(nr_threads, dtype=np.uint64)
    places = np.zeros(nr_threads, dtype=np.uint64)
    seen = np.empty(threads * APART, dtype=np.uint64)
    for i in range(nr_threads):
        seen[U64(i) * APART] = U64(i) * run
    tables = np.int64(min(run, KEPT_TABLES))
    kept = np.empty((nr_threads, (tables + 1) * 512), dtype=np.uint64)
    kept_of = np.full((nr_threads, tables), NO_STOP)
    steps = np.empty((nr_threads, tables), dtype=np.uint64)
    for i in prange(nr_threads):
        stops[i], written[i], places[i] = look_and_write(
            U64(i),
            threads,
            run,
            first,
            past,
            past_caches,
            constants,
            vmas,
            owners,
            upper,
            child,
            leaf,
            hmm_pfns,
            seen,
            kept[i],
            kept_of[i],
            steps[i],
        )
    for i in range(nr_threads):
        stop = min(stop, stops[i])
    past = min(past, stop)
    if first < past:
        for i in prange(nr_threads):
            stops[i] = write_rest(
                U64(i),
                threads,
                run,
                first,
                past,
                past_caches,
                constants,
                vmas,
                owners,
                upper,
                child,
                leaf,
                hmm_pfns,
                written,
                places,
                kept,
                kept_of,
                steps,
            )
        for i in range(nr_threads):
            stop = min(stop, stops[i])
    return stop


def _describe(va, constants, vmas, owners, upper, child, leaf, hmm_pfns):
    return describe_stop(va, unpack(constants), Arrays(vmas, owners, upper, child, leaf, hmm_pfns))


def _extent_end(va, constants, vmas, owners, upper, child, leaf, hmm_pfns):
    return extent_at(va, va, unpack(constants), Arrays(vmas, owners, upper, child, leaf, hmm_pfns)).end


resolve_parallel = cached(njit(_resolve, parallel=True))
resolve_sequential = cached(njit(_resolve))
describe = cached(njit(_describe))
extent_end = cached(njit(_extent_end))


def resolver(range_: HmmRange) -> CpuResolver:
    """Return what resolves the waves of one call."""
    return CpuResolver(range_)


class CpuResolver:
    """Resolves waves of one call; see :class:`gpuhmm.hmm.settle.Resolver`."""

    def __init__(self, range_: HmmRange) -> None:
        self.mm = range_.notifier.mm
        self.constants = walk_constants(range_)
        self.words = range_.hmm_pfns
        self.max_wave = max(range_.npages, 1)
        self.first_wave = self.max_wave

    def wave_end(self, va: int) -> int:
        """Return the end of the extent that ``va - 1`` lies in, where needs are an OR over pages."""
        if not asks_by_page(Walk(*self.constants)):
            return va
        return int(extent_end(U64(va - 4096), self.constants, *host_arrays(self.mm, self.words)))

    def resolve(self, first: int, past: int) -> Stop | None:
        """Write the words of ``[first, past)`` below the first stop, in place."""
        arrays = host_arrays(self.mm, self.words)
        npages = (past - first) >> 12
        if on_one_thread(npages, _SEQUENTIAL_PAGES):
            resolve, threads = resolve_sequential, 1
        else:
            resolve, threads = resolve_parallel, get_num_threads()
        past_caches = goes_past_caches(npages, self.mm.kernel)
        stop = resolve(U64(first), U64(past), threads, _RUN, past_caches, self.constants, *arrays)
        if stop == NO_STOP:
            return None
        return Stop(int(stop), *map(int, describe(U64(stop), self.constants, *arrays)))

    def finish(self, past: int) -> None:
        """Nothing is left: the words were written in place."""
