"""What µTLBs do, event by event: serve accesses, fault, stall, try again after a replay.  Compiled.

One event is one access of one µTLB.  The µTLB whose event comes first acts, the lowest number where
two come at the same time, so that the buffer is written in the order of time.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from gpuhmm.coalesce.access import ACCESS_NEEDS, ACCESS_PREFETCH
from gpuhmm.coalesce.device.machine import (
    ACCESS_LATENCY,
    ACCESSES,
    BUFFER,
    CROSS_UTLB,
    ENDING,
    FAULT_INTERVAL,
    FIRST_FAULTS,
    GET,
    HIT_INTERVAL,
    HITS,
    ISSUE_INTERVAL,
    NEVER,
    OUTSTANDING,
    OVERFLOWS,
    PUT,
    REFAULTS,
    REPLAY_JITTER,
    REPLAY_LATENCY,
    REPLAYS,
    REPLAYS_UNDER_WAY,
    SAME_UTLB,
    SEED,
    SMS_PER_UTLB,
    STALLED,
    STARTED,
    UTLBS,
    WAITING,
    WARPS_PER_SM,
)
from gpuhmm.coalesce.device.warps import chance, dequeue, go_on, start
from gpuhmm.kernels.compile_cache import cached

_NEEDS = np.array(ACCESS_NEEDS, dtype=np.uint64)
_PREFETCH = np.uint8(ACCESS_PREFETCH)
#: Mixed into what chance decides about replays, so that it is apart from that about warps.
_REPLAY_CHANCE = 1 << 40


@njit
def _write(m, page, access, slot, time):
    """Write a fault into the buffer; return 0, and count an overflow, if there is no room."""
    if m.counts[PUT] - m.counts[GET] >= m.limits[BUFFER]:
        m.counts[OVERFLOWS] += 1
        return 0
    at = m.counts[PUT] % m.limits[BUFFER]
    m.fault_time[at] = time
    m.fault_page[at] = page
    m.fault_access[at] = access
    m.fault_sm[at] = slot // m.limits[WARPS_PER_SM]
    m.counts[PUT] += 1
    return 1


@njit
def _arrival(m, utlb, replay):
    """Return when a replay reaches a µTLB."""
    time = m.replay_times[replay % REPLAYS_UNDER_WAY] + m.limits[REPLAY_LATENCY]
    return time + chance(m.limits[SEED], _REPLAY_CHANCE + utlb, replay, m.limits[REPLAY_JITTER])


@njit
def _next_time(m, utlb):
    """Return when a µTLB acts next, NEVER if nothing but a replay to come can make it."""
    time = NEVER
    if m.retry_end[utlb] > 0:
        time = m.free[utlb]
    elif m.blocked[utlb] == 0:
        if m.serving[utlb] >= 0:
            time = m.free[utlb]
        else:
            first = utlb * m.limits[SMS_PER_UTLB]
            for sm in range(first, first + m.limits[SMS_PER_UTLB]):
                if m.queue_count[sm] > 0:
                    time = min(time, max(m.free[utlb], m.warp_ready[m.queue[sm, m.queue_head[sm]]]))
    if m.replays_seen[utlb] < m.counts[REPLAYS]:
        time = min(time, _arrival(m, utlb, m.replays_seen[utlb]))
    return time


@njit
def _next_warp(m, utlb):
    """Take from the SMs the warp that may issue first; SMs take turns where that is the same."""
    of_each = m.limits[SMS_PER_UTLB]
    best = NEVER
    chosen = -1
    for turn in range(1, of_each + 1):
        sm = utlb * of_each + (m.last_sm[utlb] + turn) % of_each
        if m.queue_count[sm] > 0:
            time = max(m.free[utlb], m.warp_ready[m.queue[sm, m.queue_head[sm]]])
            if time < best:
                best = time
                chosen = sm
    m.last_sm[utlb] = chosen - utlb * of_each
    return dequeue(m, chosen)


@njit
def _begin_retry(m, utlb, time):
    """A replay reached a µTLB: every outstanding access is made again, in order."""
    m.replays_seen[utlb] += 1
    kept = m.out_count[utlb]
    if m.retry_end[utlb] > 0:  # those that the replay before let fail already, and those that it left
        kept = m.retry_kept[utlb]
        for at in range(m.retry_next[utlb], m.retry_end[utlb]):
            _keep(m, utlb, at, kept)
            kept += 1
    m.out_count[utlb] = kept
    m.retry_next[utlb] = 0
    m.retry_end[utlb] = kept
    m.retry_kept[utlb] = 0
    m.free[utlb] = max(m.free[utlb], time)


@njit
def _keep(m, utlb, at, to):
    m.out_page[utlb, to] = m.out_page[utlb, at]
    m.out_access[utlb, to] = m.out_access[utlb, at]
    m.out_slot[utlb, to] = m.out_slot[utlb, at]
    m.out_written[utlb, to] = m.out_written[utlb, at]


@njit
def _retry(m, entries, utlb, time):
    """Make the next outstanding access again."""
    at = m.retry_next[utlb]
    page = m.out_page[utlb, at]
    access = m.out_access[utlb, at]
    slot = m.out_slot[utlb, at]
    m.retry_next[utlb] += 1
    if entries[page] & _NEEDS[access] == _NEEDS[access]:
        m.page_out[page] -= 1
        m.counts[STALLED] -= 1
        m.warp_pending[slot] -= 1
        m.warp_data[slot] = max(m.warp_data[slot], time + m.limits[ACCESS_LATENCY])
        m.free[utlb] = time + m.limits[HIT_INTERVAL]
        if m.warp_pending[slot] == 0 and (m.warp_state[slot] == WAITING or m.warp_state[slot] == ENDING):
            go_on(m, slot, time)
    else:
        to = m.retry_kept[utlb]
        if _write(m, page, access, slot, time) > 0:
            if m.out_written[utlb, at] > 0:
                m.counts[REFAULTS] += 1
            m.out_written[utlb, at] = 1
        _keep(m, utlb, at, to)
        m.retry_kept[utlb] += 1
        m.free[utlb] = time + m.limits[FAULT_INTERVAL]
    if m.retry_next[utlb] == m.retry_end[utlb]:
        m.out_count[utlb] = m.retry_kept[utlb]
        m.retry_end[utlb] = 0
        m.blocked[utlb] = 0


@njit
def _first_fault(m, utlb, page, access, slot, time):
    """An access misses for the first time: it faults and stays outstanding."""
    same = False
    for at in range(m.out_count[utlb]):
        same |= m.out_page[utlb, at] == page
    if same:
        m.counts[SAME_UTLB] += 1
    elif m.page_out[page] > 0:
        m.counts[CROSS_UTLB] += 1
    at = m.out_count[utlb]
    m.out_page[utlb, at] = page
    m.out_access[utlb, at] = access
    m.out_slot[utlb, at] = slot
    m.out_written[utlb, at] = _write(m, page, access, slot, time)
    m.out_count[utlb] += 1
    m.page_out[page] += 1
    m.counts[STALLED] += 1
    m.warp_pending[slot] += 1


@njit
def _serve(m, entries, utlb, time, limit, horizon):
    """Serve accesses of the warp in turn: one that faults, or those that hit before others act."""
    if m.serving[utlb] < 0:
        m.serving[utlb] = _next_warp(m, utlb)
    slot = m.serving[utlb]
    access = m.op_access[m.warp_op[slot]]
    needs = _NEEDS[access]
    past = m.op_pages[m.warp_op[slot] + 1]
    now = time
    while m.warp_page[slot] < past and (now == time or (now <= limit and now < horizon)):
        page = m.pages[m.warp_page[slot]]
        if entries[page] & needs == needs:
            m.counts[HITS] += 1
            now += m.limits[HIT_INTERVAL]
            if access != _PREFETCH:
                m.warp_data[slot] = max(m.warp_data[slot], now + m.limits[ACCESS_LATENCY])
        elif now > time:
            break  # others may act before
        elif access == _PREFETCH:
            _write(m, page, access, slot, now)
            now += m.limits[FAULT_INTERVAL]
            horizon = now
        elif m.out_count[utlb] == m.limits[OUTSTANDING]:
            m.blocked[utlb] = 1
            break
        else:
            _first_fault(m, utlb, page, access, slot, now)
            now += m.limits[FAULT_INTERVAL]
            horizon = now
        m.counts[ACCESSES] += 1
        m.warp_page[slot] += 1
    m.free[utlb] = now
    if m.warp_page[slot] == past:
        m.serving[utlb] = -1
        m.warp_op[slot] += 1
        go_on(m, slot, now + m.limits[ISSUE_INTERVAL])


@njit
def _step(m, entries, utlb, time, limit, horizon):
    if m.replays_seen[utlb] < m.counts[REPLAYS]:
        arrival = _arrival(m, utlb, m.replays_seen[utlb])
        if arrival <= time:
            _begin_retry(m, utlb, time)
            return
        horizon = min(horizon, arrival)
    if m.retry_end[utlb] > 0:
        _retry(m, entries, utlb, time)
    else:
        _serve(m, entries, utlb, time, limit, horizon)


def _run(m, entries, limit, until_fault):
    """Let the device go on until ``limit``, or until an entry is at or beyond GET if that is asked."""
    utlbs = m.limits[UTLBS]
    while not (until_fault and m.counts[PUT] > m.counts[GET]):
        if m.counts[STARTED] != 0:
            m.counts[STARTED] = 0
            for utlb in range(utlbs):
                m.next_time[utlb] = _next_time(m, utlb)
        first = NEVER
        horizon = NEVER
        utlb = 0
        for other in range(utlbs):
            time = m.next_time[other]
            if time < first:
                horizon = first
                first = time
                utlb = other
            elif time < horizon:
                horizon = time
        if first == NEVER or first > limit:
            break
        _step(m, entries, utlb, first, limit, horizon)
        m.next_time[utlb] = _next_time(m, utlb)


def _start(m):
    """Hand out the first blocks at time 0."""
    start(m, 0)


def _replay(m, time):
    """Send a replay to every µTLB."""
    least = m.counts[REPLAYS]
    for utlb in range(m.limits[UTLBS]):
        least = min(least, m.replays_seen[utlb])
    if m.counts[REPLAYS] - least < REPLAYS_UNDER_WAY:
        m.counts[REPLAYS] += 1
    m.replay_times[(m.counts[REPLAYS] - 1) % REPLAYS_UNDER_WAY] = time
    m.counts[STARTED] = 1


run = cached(njit(_run))
begin = cached(njit(_start))
send_replay = cached(njit(_replay))
