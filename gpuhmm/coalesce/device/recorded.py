"""A recorded trace as a device: its faults come when they came, and again while nobody maps their pages."""

from __future__ import annotations

import numpy as np

from gpuhmm.coalesce.areas import DeviceAreas
from gpuhmm.coalesce.device.playback import (
    P_CROSS,
    P_FAULTS,
    P_GET,
    P_HITS,
    P_NEXT,
    P_OVERFLOWS,
    P_PREFETCHES,
    P_PUT,
    P_REFAULTS,
    P_SAME,
    P_SCHEDULED_FIRST,
    P_SCHEDULED_PAST,
    P_WAITING,
    Playback,
    give_up,
    play,
    send_replay,
)
from gpuhmm.coalesce.device.protocol import DeviceCounters
from gpuhmm.coalesce.trace import FaultTrace

#: Times stay below this, so that no sum of them wraps.
_LAST = 1 << 62


class RecordedDevice:
    """A :class:`~gpuhmm.coalesce.device.protocol.FaultingDevice` that repeats a trace.

    Time counts from the first fault of the trace.  Every fault is written at its time, also when its page is
    mapped by then: it is what was recorded.  The device that made the trace had a driver, whose replays the
    later faults answer to; here they come regardless.  An entry that GET has passed, read or not, is
    outstanding until a replay: if its page has no sufficient entry then, it is written again
    ``replay_latency_ns`` later, in the order of the buffer; a prefetch is not.  A fault that finds
    the buffer full is treated like one that GET has passed.  A replay does nothing to what is in the buffer.

    ``areas`` must hold all pages, by default the 2 MiB blocks around them.  ValueError if they do not, and
    for a buffer or a latency that cannot be.
    """

    def __init__(
        self,
        trace: FaultTrace,
        areas: DeviceAreas | None = None,
        *,
        buffer_entries: int = 6144,
        replay_latency_ns: int = 1000,
    ) -> None:
        if not 1 <= buffer_entries <= 1 << 30:
            raise ValueError(f"buffer_entries must be within 1 and 2^30 (got {buffer_entries})")
        if not 0 <= replay_latency_ns <= 10**9:
            raise ValueError(f"replay_latency_ns must be within 0 and 10^9 (got {replay_latency_ns})")
        trace.check()
        if len(trace) and int(trace.time[-1] - trace.time[0]) >= _LAST:
            raise ValueError("a trace must last less than 2^62 ns")
        self.areas = DeviceAreas.around(trace.space, trace.va) if areas is None else areas
        places = self.areas.places(trace.space, trace.va)
        if (places < 0).any():
            row = int(np.flatnonzero(places < 0)[0])
            raise ValueError(f"areas must hold every page (got {int(trace.va[row]):#x} of fault {row})")
        self.trace = trace
        self.gpcs, self.utlbs = int(trace.gpc.max(initial=0)) + 1, trace.utlbs
        self.sms = int(trace.sm.max(initial=0)) + 1
        self.buffer_entries = buffer_entries
        self._replays = 0
        pairs = places * self.utlbs + trace.utlb
        pair = np.unique(pairs, return_inverse=True)[1].astype(np.int64)
        count = len(trace)
        self._state = Playback(
            numbers=np.array([*[0] * (P_CROSS + 1), buffer_entries, replay_latency_ns, 1], dtype=np.int64),
            time=(trace.time - trace.time[:1]).astype(np.int64),
            place=places,
            access=trace.access,
            pair=pair,
            written=np.zeros(count, dtype=np.uint8),
            rows=np.zeros(buffer_entries, dtype=np.int64),
            times=np.zeros(buffer_entries, dtype=np.int64),
            waiting=np.zeros(count, dtype=np.int64),
            scheduled=np.zeros(count + 1, dtype=np.int64),
            scheduled_time=np.zeros(count + 1, dtype=np.int64),
            page_out=np.zeros(self.areas.npages, dtype=np.int32),
            pair_out=np.zeros(count, dtype=np.int32),
        )
        self._numbers = self._state.numbers

    @property
    def counters(self) -> DeviceCounters:
        """What happened so far, a copy."""
        numbers = [int(number) for number in self._numbers]
        return DeviceCounters(
            faults=numbers[P_FAULTS],
            same_utlb=numbers[P_SAME],
            cross_utlb=numbers[P_CROSS],
            refaults=numbers[P_REFAULTS],
            overflows=numbers[P_OVERFLOWS],
            replays=self._replays,
            accesses=numbers[P_NEXT],
            hits=numbers[P_HITS],
        )

    def next_fault(self, now: int, until: int | None = None) -> int | None:
        """Let the device go on until an entry is at or beyond GET; see the protocol."""
        play(self._state, self.areas.entries, _LAST if until is None else until, True)
        get = int(self._numbers[P_GET])
        if self._numbers[P_PUT] == get:
            return None
        return int(self._state.times[get % self.buffer_entries])

    def read_put(self, now: int) -> int:
        """Let the device go on until ``now`` and return PUT.  ValueError for a time that cannot be."""
        self._go_on(now)
        return int(self._numbers[P_PUT])

    def read(self, get: int, past: int) -> FaultTrace:
        """Return the entries ``[get, past)``, with the times at which they were written."""
        self._check("entries", get, past)
        at = np.arange(get, past) % self.buffer_entries
        found = self.trace[self._state.rows[at]]
        found.time = self._state.times[at].astype(np.uint64)
        return found

    def write_get(self, get: int) -> None:
        """Make the room of the entries before ``get`` free.  ValueError unless between GET and PUT."""
        self._check("GET", get, get)
        give_up(self._state, get)

    def replay(self, now: int) -> None:
        """Let every outstanding access that GET has passed be made again."""
        self._go_on(now)
        send_replay(self._state, self.areas.entries, now)
        self._replays += 1

    def report_prefetches(self, wanted: bool) -> None:
        """Write recorded faults of prefetches into the buffer, or leave them out from now on."""
        self._numbers[P_PREFETCHES] = int(wanted)

    def stalled(self) -> int:
        """Faults that are in the buffer, wait for a replay, or are about to be written again."""
        numbers = self._numbers
        again = numbers[P_SCHEDULED_PAST] - numbers[P_SCHEDULED_FIRST]
        return int(numbers[P_WAITING] + again + numbers[P_PUT] - numbers[P_GET])

    def running(self) -> bool:
        """True while faults are to come that wait for no replay."""
        again = self._numbers[P_SCHEDULED_PAST] - self._numbers[P_SCHEDULED_FIRST]
        return int(self._numbers[P_NEXT]) < len(self.trace) or bool(again > 0)

    def done(self) -> bool:
        """True when every fault was written and nothing is outstanding."""
        return int(self._numbers[P_NEXT]) == len(self.trace) and self.stalled() == 0

    def _go_on(self, now: int) -> None:
        if not 0 <= now < _LAST:
            raise ValueError(f"times must be whole ns within 0 and 2^62 (got {now})")
        play(self._state, self.areas.entries, now, False)

    def _check(self, what: str, get: int, past: int) -> None:
        first, last = int(self._numbers[P_GET]), int(self._numbers[P_PUT])
        if not first <= get <= past <= last:
            raise ValueError(f"{what} must be within {first} and {last} (got {get}, {past})")
