"""A batch on the CPU: ranges are looked at in parallel, then those below the first stop written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit, prange

from gpuhmm.hmm.walk.arrays import Arrays, host_arrays
from gpuhmm.hmm.walk.constants import Walk, for_range, may_fault, unpack, walk_constants
from gpuhmm.hmm.walk.span import NO_STOP, find_stop
from gpuhmm.kernels.compile_cache import cached
from gpuhmm.kernels.cpu_tables import write_words
from gpuhmm.kernels.lanes import finish_stores
from gpuhmm.kernels.paths import goes_past_caches, on_one_thread
from gpuhmm.shared import register

if TYPE_CHECKING:
    from gpuhmm.hmm.batch import HmmRangeBatch

register()

#: Pages that are looked at and written before the next: their entries stay in the cache in between.
_PIECE_PAGES = 1 << 15
#: Up to this many pages one thread does it all.
_SEQUENTIAL_PAGES = 1 << 12


def _range_stops(i, starts, ends, offsets, walk, vmas, owners, upper, child, leaf, hmm_pfns):
    """Return whether the walk of a range stops somewhere."""
    own = for_range(walk, starts[i], ends[i])
    arrays = Arrays(vmas, owners, upper, child, leaf, hmm_pfns[offsets[i] : offsets[i + 1]])
    stop, _ = find_stop(own.start, own.end, own.start, own, arrays)
    return stop != NO_STOP


def _write_range(i, starts, ends, offsets, past_caches, walk, vmas, owners, upper, child, leaf, hmm_pfns):
    """Write the words of a range; return whether its walk stops all the same, whatever is asked."""
    own = for_range(walk, starts[i], ends[i])
    arrays = Arrays(vmas, owners, upper, child, leaf, hmm_pfns[offsets[i] : offsets[i + 1]])
    stop = write_words(own.start, own.end, own.start, own, arrays, past_caches)
    if past_caches:
        finish_stores()
    return stop != NO_STOP


# As for shared functions: see gpuhmm.shared.register.
_range_stops = njit(_range_stops, _nrt=False)
_write_range = njit(_write_range, _nrt=False)


def _resolve(
    first,
    past,
    starts,
    ends,
    offsets,
    past_caches,
    constants,
    vmas,
    owners,
    upper,
    child,
    leaf,
    hmm_pfns,
):
    """Write the words of ranges ``first`` up to the first that stops; return which, or ``past``."""
    count = past - first
    stops = np.zeros(count, dtype=np.bool_)
    if may_fault(unpack(constants)):
        for k in prange(count):
            walk = unpack(constants)
            stops[k] = _range_stops(
                first + k, starts, ends, offsets, walk, vmas, owners, upper, child, leaf, hmm_pfns
            )
    stop = count
    for k in range(count):
        if stops[k]:
            stop = k
            break
    for k in prange(stop):
        walk = unpack(constants)
        stops[k] = _write_range(
            first + k, starts, ends, offsets, past_caches, walk, vmas, owners, upper, child, leaf, hmm_pfns
        )
    for k in range(stop):
        if stops[k]:
            return first + k
    return first + stop


resolve_parallel = cached(njit(_resolve, parallel=True))
resolve_sequential = cached(njit(_resolve))


def batch_resolver(batch: HmmRangeBatch) -> CpuBatchResolver:
    """Return what resolves the ranges of ``batch``."""
    return CpuBatchResolver(batch)


class CpuBatchResolver:
    """Resolves ranges of one batch; see :class:`gpuhmm.hmm.batch.BatchResolver`."""

    def __init__(self, batch: HmmRangeBatch) -> None:
        self.batch = batch
        self.mm = batch.notifier.mm
        self.constants = walk_constants(batch)

    def resolve(self, first: int, past: int) -> int:
        """Write the words of ranges ``first`` up to the first that stops; return which, or ``past``."""
        batch = self.batch
        state = (self.constants, *host_arrays(self.mm, batch.hmm_pfns))
        past_caches = goes_past_caches(len(batch.hmm_pfns), self.mm.kernel)
        looks_first = may_fault(Walk(*self.constants))
        at, until = first, past
        while at < past:
            if looks_first:
                # In pieces, so that what was looked at is still in the cache when it is written.
                limit = batch.offsets[at] + _PIECE_PAGES
                until = min(past, max(at + 1, int(np.searchsorted(batch.offsets, limit, "right")) - 1))
            pages = int(batch.offsets[until] - batch.offsets[at])
            few = on_one_thread(pages, _SEQUENTIAL_PAGES)
            resolve = resolve_sequential if few else resolve_parallel
            stop = int(resolve(at, until, batch.starts, batch.ends, batch.offsets, past_caches, *state))
            if stop < until:
                return stop
            at = until
        return past
