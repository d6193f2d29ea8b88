"""What µTLBs do, event by event: serve accesses, fault, stall, try again after a replay.  Compiled.

One event is one access of one µTLB.  The µTLB whose event comes first acts, the lowest number where
two come at the same time, so that the buffer is written in the order of time.
"""

from __future__ import annotations

from numba import njit

from gpuhmm.coalesce.access import ACCESS_NEEDS, ACCESS_PREFETCH
from gpuhmm.coalesce.device.machine import (
    ACCESS_LATENCY,
    ACCESSES,
    BUFFER,
    CROSS_UTLB,
    ENDING,
    F_ACCESS,
    F_PAGE,
    F_SM,
    F_TIME,
    FAULT_INTERVAL,
    GET,
    GMMU_FREE,
    HIT_INTERVAL,
    HITS,
    ISSUE_INTERVAL,
    NEVER,
    O_ACCESS,
    O_SLOT,
    O_WRITTEN,
    OP_ACCESS,
    OUTSTANDING,
    OVERFLOWS,
    PREFETCHES,
    PUT,
    QUEUE,
    REFAULTS,
    REPLAY_JITTER,
    REPLAY_LATENCY,
    REPLAY_TIMES,
    REPLAYS,
    REPLAYS_UNDER_WAY,
    S_QUEUE_COUNT,
    S_QUEUE_HEAD,
    SAME_UTLB,
    SEED,
    SMS_PER_UTLB,
    STALLED,
    STARTED,
    U_BLOCKED,
    U_FREE,
    U_LAST_SM,
    U_OUT_COUNT,
    U_REPLAYS_SEEN,
    U_RETRY_END,
    U_RETRY_KEPT,
    U_RETRY_NEXT,
    U_SERVING,
    U_SKEW,
    U_TURN,
    UTLBS,
    W_DATA,
    W_OP,
    W_PAGE,
    W_PENDING,
    W_READY,
    W_STATE,
    WAITING,
    WARPS_PER_SM,
)
from gpuhmm.coalesce.device.warps import chance, dequeue, go_on, start
from gpuhmm.kernels.compile_cache import cached

_PREFETCH = ACCESS_PREFETCH
#: Mixed into what chance decides about replays, so that it is apart from that about warps.
_REPLAY_CHANCE = 1 << 40


@njit(_nrt=False)
def _write(m, page, access, slot, time):
    """Write a fault into the buffer; return 0, and count an overflow, if there is no room."""
    if m.device[PUT] - m.device[GET] >= m.device[BUFFER]:
        m.device[OVERFLOWS] += 1
        return 0
    at = m.device[PUT] % m.device[BUFFER]
    m.faults[at, F_TIME] = time
    m.faults[at, F_PAGE] = page
    m.faults[at, F_ACCESS] = access
    m.faults[at, F_SM] = slot // m.device[WARPS_PER_SM]
    m.device[PUT] += 1
    return 1


@njit(_nrt=False)
def _has_turn(m, utlb, time):
    """Return whether the GMMU takes a miss of a µTLB now.

    It takes one each FAULT_INTERVAL, in the order in which µTLBs come with them.  A µTLB that comes too early
    is given its turn, and waits for it.
    """
    if m.utlb[utlb, U_TURN] <= time:
        m.utlb[utlb, U_TURN] = NEVER
        return True
    turn = max(time, m.device[GMMU_FREE])
    m.device[GMMU_FREE] = turn + m.device[FAULT_INTERVAL]
    if turn > time:
        m.utlb[utlb, U_TURN] = turn
        m.utlb[utlb, U_FREE] = turn
        return False
    return True


@njit(_nrt=False)
def _arrival(m, utlb, replay):
    """Return when a replay reaches a µTLB."""
    time = (
        m.device[REPLAY_TIMES + replay % REPLAYS_UNDER_WAY] + m.device[REPLAY_LATENCY] + m.utlb[utlb, U_SKEW]
    )
    return time + chance(m.device[SEED], _REPLAY_CHANCE + utlb, replay, m.device[REPLAY_JITTER])


@njit(_nrt=False)
def _next_time(m, utlb):
    """Return when a µTLB acts next, NEVER if nothing but a replay to come can make it."""
    time = NEVER
    if m.utlb[utlb, U_RETRY_END] > 0:
        time = m.utlb[utlb, U_FREE]
    elif m.utlb[utlb, U_BLOCKED] == 0:
        if m.utlb[utlb, U_SERVING] >= 0:
            time = m.utlb[utlb, U_FREE]
        else:
            first = utlb * m.device[SMS_PER_UTLB]
            for sm in range(first, first + m.device[SMS_PER_UTLB]):
                if m.sm[sm, S_QUEUE_COUNT] > 0:
                    time = min(
                        time,
                        max(
                            m.utlb[utlb, U_FREE], m.warp[m.slots[sm, QUEUE, m.sm[sm, S_QUEUE_HEAD]], W_READY]
                        ),
                    )
    if m.utlb[utlb, U_REPLAYS_SEEN] < m.device[REPLAYS]:
        time = min(time, _arrival(m, utlb, m.utlb[utlb, U_REPLAYS_SEEN]))
    return time


@njit(_nrt=False)
def _next_warp(m, utlb):
    """Take from the SMs the warp that may issue first; SMs take turns where that is the same."""
    of_each = m.device[SMS_PER_UTLB]
    best = NEVER
    chosen = -1
    for turn in range(1, of_each + 1):
        sm = utlb * of_each + (m.utlb[utlb, U_LAST_SM] + turn) % of_each
        if m.sm[sm, S_QUEUE_COUNT] > 0:
            time = max(m.utlb[utlb, U_FREE], m.warp[m.slots[sm, QUEUE, m.sm[sm, S_QUEUE_HEAD]], W_READY])
            if time < best:
                best = time
                chosen = sm
    m.utlb[utlb, U_LAST_SM] = chosen - utlb * of_each
    return dequeue(m, chosen)


@njit(_nrt=False)
def _begin_retry(m, utlb, time):
    """A replay reached a µTLB: every outstanding access is made again, in order."""
    m.utlb[utlb, U_REPLAYS_SEEN] += 1
    kept = m.utlb[utlb, U_OUT_COUNT]
    if m.utlb[utlb, U_RETRY_END] > 0:  # those that the replay before let fail already, and those that it left
        kept = m.utlb[utlb, U_RETRY_KEPT]
        for at in range(m.utlb[utlb, U_RETRY_NEXT], m.utlb[utlb, U_RETRY_END]):
            _keep(m, utlb, at, kept)
            kept += 1
    m.utlb[utlb, U_OUT_COUNT] = kept
    m.utlb[utlb, U_RETRY_NEXT] = 0
    m.utlb[utlb, U_RETRY_END] = kept
    m.utlb[utlb, U_RETRY_KEPT] = 0
    m.utlb[utlb, U_FREE] = max(m.utlb[utlb, U_FREE], time)


@njit(_nrt=False)
def _keep(m, utlb, at, to):
    m.out_page[utlb, to] = m.out_page[utlb, at]
    m.out[utlb, to, O_ACCESS] = m.out[utlb, at, O_ACCESS]
    m.out[utlb, to, O_SLOT] = m.out[utlb, at, O_SLOT]
    m.out[utlb, to, O_WRITTEN] = m.out[utlb, at, O_WRITTEN]


@njit(_nrt=False)
def _retry(m, entries, utlb, time):
    """Make the next outstanding access again."""
    at = m.utlb[utlb, U_RETRY_NEXT]
    page = m.out_page[utlb, at]
    access = m.out[utlb, at, O_ACCESS]
    slot = m.out[utlb, at, O_SLOT]
    hit = entries[page] & ACCESS_NEEDS[access] == ACCESS_NEEDS[access]
    if not hit and not _has_turn(m, utlb, time):
        return
    m.utlb[utlb, U_TURN] = NEVER
    m.utlb[utlb, U_RETRY_NEXT] += 1
    if hit:
        m.page_out[page] -= 1
        m.device[STALLED] -= 1
        m.warp[slot, W_PENDING] -= 1
        m.warp[slot, W_DATA] = max(m.warp[slot, W_DATA], time + m.device[ACCESS_LATENCY])
        m.utlb[utlb, U_FREE] = time + m.device[HIT_INTERVAL]
        if m.warp[slot, W_PENDING] == 0 and (
            m.warp[slot, W_STATE] == WAITING or m.warp[slot, W_STATE] == ENDING
        ):
            go_on(m, slot, time)
    else:
        to = m.utlb[utlb, U_RETRY_KEPT]
        if _write(m, page, access, slot, time) > 0:
            if m.out[utlb, at, O_WRITTEN] > 0:
                m.device[REFAULTS] += 1
            m.out[utlb, at, O_WRITTEN] = 1
        _keep(m, utlb, at, to)
        m.utlb[utlb, U_RETRY_KEPT] += 1
        m.utlb[utlb, U_FREE] = time + m.device[HIT_INTERVAL]
    if m.utlb[utlb, U_RETRY_NEXT] == m.utlb[utlb, U_RETRY_END]:
        m.utlb[utlb, U_OUT_COUNT] = m.utlb[utlb, U_RETRY_KEPT]
        m.utlb[utlb, U_RETRY_END] = 0
        m.utlb[utlb, U_BLOCKED] = 0


@njit(_nrt=False)
def _first_fault(m, utlb, page, access, slot, time):
    """An access misses for the first time: it faults and stays outstanding."""
    same = False
    for at in range(m.utlb[utlb, U_OUT_COUNT]):
        same |= m.out_page[utlb, at] == page
    if same:
        m.device[SAME_UTLB] += 1
    elif m.page_out[page] > 0:
        m.device[CROSS_UTLB] += 1
    at = m.utlb[utlb, U_OUT_COUNT]
    m.out_page[utlb, at] = page
    m.out[utlb, at, O_ACCESS] = access
    m.out[utlb, at, O_SLOT] = slot
    m.out[utlb, at, O_WRITTEN] = _write(m, page, access, slot, time)
    m.utlb[utlb, U_OUT_COUNT] += 1
    m.page_out[page] += 1
    m.device[STALLED] += 1
    m.warp[slot, W_PENDING] += 1


@njit(_nrt=False)
def _serve(m, entries, utlb, time, limit, horizon):
    """Serve accesses of the warp in turn: one that faults, or those that hit before others act."""
    if m.utlb[utlb, U_SERVING] < 0:
        m.utlb[utlb, U_SERVING] = _next_warp(m, utlb)
    slot = m.utlb[utlb, U_SERVING]
    access = m.op_kind[m.warp[slot, W_OP]] & OP_ACCESS
    needs = ACCESS_NEEDS[access]
    past = m.op_pages[m.warp[slot, W_OP] + 1]
    now = time
    while m.warp[slot, W_PAGE] < past and (now == time or (now <= limit and now < horizon)):
        page = m.pages[m.warp[slot, W_PAGE]]
        if entries[page] & needs == needs:
            m.device[HITS] += 1
            m.utlb[utlb, U_TURN] = NEVER
            now += m.device[HIT_INTERVAL]
            if access != _PREFETCH:
                m.warp[slot, W_DATA] = max(m.warp[slot, W_DATA], now + m.device[ACCESS_LATENCY])
        elif now > time:
            break  # others may act before
        elif access == _PREFETCH and m.device[PREFETCHES] == 0:
            now += m.device[HIT_INTERVAL]  # nobody hears of it
        elif access != _PREFETCH and m.utlb[utlb, U_OUT_COUNT] == m.device[OUTSTANDING]:
            m.utlb[utlb, U_BLOCKED] = 1
            break
        elif not _has_turn(m, utlb, now):
            return
        else:
            if access == _PREFETCH:
                _write(m, page, access, slot, now)
            else:
                _first_fault(m, utlb, page, access, slot, now)
            now += m.device[HIT_INTERVAL]
            horizon = now
        m.device[ACCESSES] += 1
        m.warp[slot, W_PAGE] += 1
    m.utlb[utlb, U_FREE] = now
    if m.warp[slot, W_PAGE] == past:
        m.utlb[utlb, U_SERVING] = -1
        m.warp[slot, W_OP] += 1
        go_on(m, slot, now + m.device[ISSUE_INTERVAL])


@njit(_nrt=False)
def _step(m, entries, utlb, time, limit, horizon):
    if m.utlb[utlb, U_REPLAYS_SEEN] < m.device[REPLAYS]:
        arrival = _arrival(m, utlb, m.utlb[utlb, U_REPLAYS_SEEN])
        if arrival <= time:
            _begin_retry(m, utlb, time)
            return
        horizon = min(horizon, arrival)
    if m.utlb[utlb, U_RETRY_END] > 0:
        _retry(m, entries, utlb, time)
    else:
        _serve(m, entries, utlb, time, limit, horizon)


def _run(m, entries, limit, until_fault):
    """Let the device go on until ``limit``, or until an entry is at or beyond GET if that is asked."""
    utlbs = m.device[UTLBS]
    while not (until_fault and m.device[PUT] > m.device[GET]):
        if m.device[STARTED] != 0:
            m.device[STARTED] = 0
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
    least = m.device[REPLAYS]
    for utlb in range(m.device[UTLBS]):
        least = min(least, m.utlb[utlb, U_REPLAYS_SEEN])
    if m.device[REPLAYS] - least < REPLAYS_UNDER_WAY:
        m.device[REPLAYS] += 1
    m.device[REPLAY_TIMES + (m.device[REPLAYS] - 1) % REPLAYS_UNDER_WAY] = time
    m.device[STARTED] = 1


run = cached(njit(_nrt=False)(_run))
begin = cached(njit(_nrt=False)(_start))
send_replay = cached(njit(_nrt=False)(_replay))
