"""The CPU back end: the shared decisions over 2 MiB slots, in parallel with numba.

Words are written in place.  Where the walk can stop, a slot is looked at before it is written, and
written only once no slot below it can stop any more, so that inputs above a stop are never touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import get_num_threads, njit, prange

from gpuhmm.hmm.settle import Stop
from gpuhmm.hmm.walk.arrays import Arrays, host_arrays
from gpuhmm.hmm.walk.constants import Walk, asks_by_page, may_fault, unpack, walk_constants
from gpuhmm.hmm.walk.extent import extent_at
from gpuhmm.hmm.walk.span import NO_STOP, describe_stop, find_stop, look_and_write_tables, write_words
from gpuhmm.kernels.atomics import load_acquire, store_release
from gpuhmm.kernels.compile_cache import cached
from gpuhmm.kernels.paths import on_one_thread
from gpuhmm.mm.x86 import ONE, PMD_SHIFT, PMD_SIZE, U64, ZERO
from gpuhmm.shared import register

if TYPE_CHECKING:
    from gpuhmm.hmm.ranges import HmmRange

register()

#: Ranges up to this many pages run on one thread: starting threads costs more.
_SEQUENTIAL_PAGES = 1 << 14
#: Slots of 2 MiB that a thread looks at in one go where the walk can stop.  Neighbours in short turns get
#: in the way of each other's prefetches; in long ones the entries leave the cache before they are used.
_RUN = U64(64)
#: Words between the counts of two threads, so that each has a line of the cache to itself.
_APART = U64(16)
_TWO = U64(2)
#: Slots that a thread may have looked at and not written before it writes two for one that it looks at.
_BEHIND = _RUN


def _slots(first, past):
    """Return the number of 2 MiB slots that ``[first, past)`` lies in."""
    return ((past - ONE) >> PMD_SHIFT) - (first >> PMD_SHIFT) + ONE


def _nth_slot(nth, thread, threads, run):
    """Return the number of a thread's ``nth`` slot: threads take turns of ``run`` slots."""
    return (nth // run * threads + thread) * run + nth % run


def _slot(slot, first, past):
    """Return the part of ``[first, past)`` that lies in its slot of that number."""
    low = ((first >> PMD_SHIFT) + slot) << PMD_SHIFT
    return max(low, first), min(low + PMD_SIZE, past)


def _look_and_write(
    thread, threads, run, first, past, constants, vmas, owners, upper, child, leaf, hmm_pfns, seen
):
    """Look at the slots of one thread for a stop, and write those below which all is known.

    ``seen`` has the first slot of every thread that it has not looked at, or that stops the walk: all
    slots below the least of these may be written.  Nobody waits for that: a thread goes on looking, and
    what it could not write is left for later.  Return the first stop of these slots, or NO_STOP, and
    how many of them are written.
    """
    walk = unpack(constants)
    arrays = Arrays(vmas, owners, upper, child, leaf, hmm_pfns)
    slots = _slots(first, past)
    looked = ZERO
    written = ZERO
    writable = ZERO
    settled = True
    stop = NO_STOP  # also if the range has fewer slots than there are threads
    slot = _nth_slot(looked, thread, threads, run)
    while slot < slots:
        low, high = _slot(slot, first, past)
        at = _nth_slot(written, thread, threads, run)
        seen_plain = ZERO
        before, behind = _slot(at, first, past)
        if at < writable and high - low == PMD_SIZE and behind - before == PMD_SIZE:
            seen_plain, done = look_and_write_tables(
                low,
                before,
                first,
                walk,
                arrays,
            )
            written = written + done
        if seen_plain == ZERO:
            stop, cut = find_stop(low, high, first, walk, arrays)
            if stop != NO_STOP:
                break
            settled = settled and cut == ZERO
        looked = looked + ONE
        slot = _nth_slot(looked, thread, threads, run)
        if settled:
            store_release(seen, thread * _APART, slot)
        at = _nth_slot(written, thread, threads, run)
        # To ask all threads costs more the more they are: ask once for half as many slots.
        if at >= writable and (looked - written) * _TWO >= threads:
            writable = slot
            for other in range(threads):
                writable = min(writable, load_acquire(seen, other * _APART))
        # One is written with the next look.  A thread that fell behind catches up.
        if at < writable and (seen_plain == ZERO or looked - written > _BEHIND):
            low, high = _slot(at, first, past)
            write_words(low, high, first, walk, arrays)
            written = written + ONE
    return stop, written


def _count_slots(thread, threads, run, slots):
    """Return how many of ``slots`` are a thread's."""
    turn = run * threads
    over = slots % turn
    return slots // turn * run + min(max(over, thread * run) - thread * run, run)


def _write_rest(
    index, pieces, run, first, past, constants, vmas, owners, upper, child, leaf, hmm_pfns, written
):
    """Write piece ``index`` of what every thread left that had ``written``; return the first stop.

    Shared out again, because one thread may have left nearly all: it was early, and another late.
    """
    walk = unpack(constants)
    arrays = Arrays(vmas, owners, upper, child, leaf, hmm_pfns)
    slots = _slots(first, past)
    threads = U64(written.shape[0])
    for thread in range(threads):
        done = written[thread]
        left = max(_count_slots(thread, threads, run, slots), done) - done
        for nth in range(done + left * index // pieces, done + left * (index + ONE) // pieces):
            low, high = _slot(_nth_slot(nth, thread, threads, run), first, past)
            stop = write_words(low, high, first, walk, arrays)
            if stop != NO_STOP:
                return stop
    return NO_STOP


# As for shared functions: see gpuhmm.shared.register.
_slots = njit(_slots, _nrt=False)
_nth_slot = njit(_nth_slot, _nrt=False)
_slot = njit(_slot, _nrt=False)
_count_slots = njit(_count_slots, _nrt=False)
_look_and_write = njit(_look_and_write, _nrt=False)
_write_rest = njit(_write_rest, _nrt=False)


def _resolve(first, past, nr_threads, longest_run, constants, vmas, owners, upper, child, leaf, hmm_pfns):
    """Write the words of ``[first, past)`` below the first stop; return its address or NO_STOP."""
    threads = U64(nr_threads)
    stops = np.empty(nr_threads, dtype=np.uint64)
    stop = NO_STOP
    run = _slots(first, past)
    written = np.zeros(1, dtype=np.uint64)  # as if one thread had been meant to write everything
    if may_fault(unpack(constants)):
        run = min((run + threads - ONE) // threads, longest_run)
        written = np.zeros(nr_threads, dtype=np.uint64)
        seen = np.empty(threads * _APART, dtype=np.uint64)
        for i in range(nr_threads):
            seen[U64(i) * _APART] = U64(i) * run
        for i in prange(nr_threads):
            stops[i], written[i] = _look_and_write(
                U64(i),
                threads,
                run,
                first,
                past,
                constants,
                vmas,
                owners,
                upper,
                child,
                leaf,
                hmm_pfns,
                seen,
            )
        for i in range(nr_threads):
            stop = min(stop, stops[i])
        past = min(past, stop)
    if first < past:
        for i in prange(nr_threads):
            stops[i] = _write_rest(
                U64(i),
                threads,
                run,
                first,
                past,
                constants,
                vmas,
                owners,
                upper,
                child,
                leaf,
                hmm_pfns,
                written,
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
        self.cuts_need = bool(asks_by_page(Walk(*self.constants)))
        self.max_wave = max(range_.npages, 1)
        self.first_wave = self.max_wave

    def wave_end(self, va: int) -> int:
        """Return the end of the extent that ``va - 1`` lies in, where needs are an OR over pages."""
        if not self.cuts_need:
            return va
        return int(extent_end(U64(va - 4096), self.constants, *host_arrays(self.mm, self.words)))

    def resolve(self, first: int, past: int) -> Stop | None:
        """Write the words of ``[first, past)`` below the first stop, in place."""
        arrays = host_arrays(self.mm, self.words)
        npages = (past - first) >> 12
        if on_one_thread(npages, _SEQUENTIAL_PAGES):
            stop = resolve_sequential(U64(first), U64(past), 1, _RUN, self.constants, *arrays)
        else:
            stop = resolve_parallel(U64(first), U64(past), get_num_threads(), _RUN, self.constants, *arrays)
        if stop == NO_STOP:
            return None
        return Stop(int(stop), *map(int, describe(U64(stop), self.constants, *arrays)))

    def finish(self, past: int) -> None:
        """Nothing is left: the words were written in place."""
