"""The state of a trace that is played back, and how it goes on.  Compiled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from gpuhmm.coalesce.access import ACCESS_NEEDS, ACCESS_PREFETCH
from gpuhmm.kernels.compile_cache import cached

#: Places of :attr:`Playback.numbers`: the next fault of the trace, counts of the buffer, faults that wait for
#: a replay, those to be written again (first and past the last of a queue), counters, limits, and
#: whether faults of prefetches are written.
P_NEXT, P_GET, P_PUT, P_WAITING, P_SCHEDULED_FIRST, P_SCHEDULED_PAST = range(6)
P_FAULTS, P_REFAULTS, P_OVERFLOWS, P_HITS, P_SAME, P_CROSS = range(6, 12)
P_BUFFER, P_LATENCY, P_PREFETCHES = range(12, 15)

I64 = npt.NDArray[np.int64]


class Playback(NamedTuple):
    """Faults by row of the trace; ``pair`` numbers a µTLB with a page; the buffer by count, as a ring."""

    numbers: I64
    time: I64
    place: I64
    access: npt.NDArray[np.uint8]
    pair: I64
    written: npt.NDArray[np.uint8]
    rows: I64
    times: I64
    waiting: I64
    scheduled: I64
    scheduled_time: I64
    page_out: npt.NDArray[np.int32]
    pair_out: npt.NDArray[np.int32]


@njit(_nrt=False)
def _deliver(p, row, time):
    """Write a fault into the buffer, or let it wait for a replay if there is no room."""
    if p.numbers[P_PUT] - p.numbers[P_GET] >= p.numbers[P_BUFFER]:
        p.numbers[P_OVERFLOWS] += 1
        _wait(p, row)
        return
    at = p.numbers[P_PUT] % p.numbers[P_BUFFER]
    p.rows[at] = row
    p.times[at] = time
    p.numbers[P_PUT] += 1
    p.numbers[P_FAULTS] += 1
    p.numbers[P_REFAULTS] += p.written[row]
    p.written[row] = 1


@njit(_nrt=False)
def _settle(p, row):
    """A fault is outstanding no more."""
    p.page_out[p.place[row]] -= 1
    p.pair_out[p.pair[row]] -= 1


@njit(_nrt=False)
def _wait(p, row):
    if p.access[row] == ACCESS_PREFETCH:
        _settle(p, row)
    else:
        p.waiting[p.numbers[P_WAITING]] = row
        p.numbers[P_WAITING] += 1


def _play(p, entries, limit, until_fault):
    """Write what comes until ``limit``, or until an entry is at or beyond GET if that is asked."""
    n = p.numbers
    while not (until_fault and n[P_PUT] > n[P_GET]):
        recorded = n[P_NEXT] < len(p.time)
        again = n[P_SCHEDULED_FIRST] < n[P_SCHEDULED_PAST]
        if again:
            at = n[P_SCHEDULED_FIRST] % len(p.scheduled)
            again = p.scheduled_time[at] <= limit
            recorded = recorded and (not again or p.time[n[P_NEXT]] < p.scheduled_time[at])
        recorded = recorded and p.time[n[P_NEXT]] <= limit
        if recorded:
            row = n[P_NEXT]
            n[P_NEXT] += 1
            needs = ACCESS_NEEDS[p.access[row]]
            n[P_HITS] += entries[p.place[row]] & needs == needs
            if p.access[row] == ACCESS_PREFETCH and n[P_PREFETCHES] == 0:
                continue
            if p.pair_out[p.pair[row]] > 0:
                n[P_SAME] += 1
            elif p.page_out[p.place[row]] > 0:
                n[P_CROSS] += 1
            p.page_out[p.place[row]] += 1
            p.pair_out[p.pair[row]] += 1
            _deliver(p, row, p.time[row])
        elif again:
            n[P_SCHEDULED_FIRST] += 1
            _deliver(p, p.scheduled[at], p.scheduled_time[at])
        else:
            break


def _give_up(p, get):
    """Move GET; what it passes waits for a replay."""
    for count in range(p.numbers[P_GET], get):
        _wait(p, p.rows[count % p.numbers[P_BUFFER]])
    p.numbers[P_GET] = get


def _send_replay(p, entries, now):
    """Settle the faults that wait and whose pages are there; have the others written again."""
    n = p.numbers
    for index in range(n[P_WAITING]):
        row = p.waiting[index]
        needs = ACCESS_NEEDS[p.access[row]]
        if entries[p.place[row]] & needs == needs:
            _settle(p, row)
        else:
            at = n[P_SCHEDULED_PAST] % len(p.scheduled)
            p.scheduled[at] = row
            p.scheduled_time[at] = now + n[P_LATENCY]
            n[P_SCHEDULED_PAST] += 1
    n[P_WAITING] = 0


play = cached(njit(_nrt=False)(_play))
give_up = cached(njit(_nrt=False)(_give_up))
send_replay = cached(njit(_nrt=False)(_send_replay))
