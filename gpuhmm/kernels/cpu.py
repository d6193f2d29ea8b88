"""The CPU back end: the shared decisions over spans of 2 MiB slots, in parallel with numba.

Words are written in place, a wave at a time.  Where the walk can stop, the inputs of a wave are saved
first, in a buffer that stays in the cache, and those above a stop are put back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit, prange

from gpuhmm.kernels.compile_cache import cached
from gpuhmm.settle import Stop, settle
from gpuhmm.shared import register
from gpuhmm.walk.constants import Walk, asks_by_page, may_fault, unpack, walk_constants
from gpuhmm.walk.extent import extent_at
from gpuhmm.walk.span import NO_STOP, describe_stop, resolve_span, restore_words
from gpuhmm.x86 import ONE, PAGE_SHIFT, PMD_SHIFT, U64

if TYPE_CHECKING:
    from gpuhmm.ranges import HmmRange

register()

#: Pages of one wave: their inputs fit in a level 2 or 3 cache, beside their entries.
_WAVE = 1 << 17
#: Ranges up to this many pages run on one thread: starting threads costs more.
_SEQUENTIAL_PAGES = 4096
#: Pieces that a wave is cut into, so that threads finish together.
_CHUNKS = 32


def _chunk(index, chunks, first, past):
    """Return the part ``index`` of ``[first, past)``, cut at borders of 2 MiB."""
    base = first >> PMD_SHIFT
    slots = ((past - ONE) >> PMD_SHIFT) - base + ONE
    low = (base + slots * index // chunks) << PMD_SHIFT
    high = (base + slots * (index + ONE) // chunks) << PMD_SHIFT
    return max(low, first), min(high, past)


_chunk = njit(inline="always")(_chunk)


def _resolve_chunk(
    index, chunks, first, past, constants, vmas, owners, upper, child, leaf, hmm_pfns, saved, saved_page
):
    low, high = _chunk(index, chunks, first, past)
    return resolve_span(
        low,
        high,
        first,
        unpack(constants),
        vmas,
        owners,
        upper,
        child,
        leaf,
        hmm_pfns,
        saved,
        saved_page,
    )


_resolve_chunk = njit(_resolve_chunk)


def _resolve(first, past, chunks, constants, vmas, owners, upper, child, leaf, hmm_pfns, saved):
    """Write the words of ``[first, past)`` below the first stop; return its address or NO_STOP."""
    page = (first - constants[0]) >> PAGE_SHIFT
    stops = np.empty(chunks, dtype=np.uint64)
    for i in prange(chunks):
        stops[i] = _resolve_chunk(
            U64(i),
            U64(chunks),
            first,
            past,
            constants,
            vmas,
            owners,
            upper,
            child,
            leaf,
            hmm_pfns,
            saved,
            page,
        )
    stop = stops.min()
    if stop < past and saved.size > 0:
        stop_page = (stop - constants[0]) >> PAGE_SHIFT
        restore_words(stop_page, page + ((past - first) >> PAGE_SHIFT), hmm_pfns, saved, page)
    return stop


def _describe(va, constants, vmas, owners, upper, child, leaf, hmm_pfns):
    return describe_stop(va, unpack(constants), vmas, owners, upper, child, leaf, hmm_pfns)


def _extent_end(va, constants, vmas, upper, child):
    return extent_at(va, va, unpack(constants), vmas, upper, child).end


resolve_parallel = cached(njit(_resolve, parallel=True))
resolve_sequential = cached(njit(_resolve))
describe = cached(njit(_describe))
extent_end = cached(njit(_extent_end))


def hmm_range_fault(range_: HmmRange) -> int:
    """Return 0 or a negative errno; see :func:`gpuhmm.hmm_range_fault`."""
    return settle(range_, CpuResolver(range_))


class CpuResolver:
    """Resolves waves of one call; see :class:`gpuhmm.settle.Resolver`."""

    def __init__(self, range_: HmmRange) -> None:
        self.mm = range_.notifier.mm
        self.constants = walk_constants(range_)
        self.words = range_.hmm_pfns
        by_name = Walk(*self.constants)
        fault = bool(may_fault(by_name))
        self.cuts_need = bool(asks_by_page(by_name))
        # A snapshot stops for changes of the walk's own only, and goes on: nothing is put back.
        self.max_wave = _WAVE if fault else max(range_.npages, 1)
        self.first_wave = self.max_wave
        self.saves = fault
        self.saved = np.empty(0, dtype=np.uint64)

    def wave_end(self, va: int) -> int:
        """Return the end of the extent that ``va - 1`` lies in, where needs are an OR over pages."""
        if not self.cuts_need:
            return va
        tables = self.mm.page_tables
        return int(
            extent_end(U64(va - 4096), self.constants, self.mm.vmas.columns(), tables.upper, tables.child)
        )

    def resolve(self, first: int, past: int) -> Stop | None:
        """Write the words of ``[first, past)`` below the first stop, in place."""
        tables = self.mm.page_tables
        vmas, owners = self.mm.vmas.columns(), self.mm.device_private
        state = (self.constants, vmas, owners, tables.upper, tables.child, tables.leaf, self.words)
        npages = (past - first) >> 12
        if self.saves and len(self.saved) < npages:
            self.saved = np.empty(npages, dtype=np.uint64)
        if npages <= _SEQUENTIAL_PAGES:
            stop = resolve_sequential(U64(first), U64(past), 1, *state, self.saved)
        else:
            chunks = min(_CHUNKS, ((past - 1) >> 21) - (first >> 21) + 1)
            stop = resolve_parallel(U64(first), U64(past), chunks, *state, self.saved)
        if stop == NO_STOP:
            return None
        return Stop(int(stop), *map(int, describe(U64(stop), *state)))

    def finish(self, past: int) -> None:
        """Nothing is left: the words were written in place."""
