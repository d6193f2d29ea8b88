"""A modelled GPU that runs a program and faults where it finds no mapping."""

from __future__ import annotations

import numpy as np

from gpuhmm.coalesce.areas import DeviceAreas
from gpuhmm.coalesce.device.config import WARP_LANES, DeviceConfig
from gpuhmm.coalesce.device.engine import begin, run, send_replay
from gpuhmm.coalesce.device.machine import (
    ACCESSES,
    CROSS_UTLB,
    F_ACCESS,
    F_PAGE,
    F_SM,
    F_TIME,
    GET,
    HITS,
    KERNEL,
    NEVER,
    OVERFLOWS,
    PREFETCHES,
    PUT,
    REFAULTS,
    SAME_UTLB,
    STALLED,
    U_OUT_COUNT,
    U_RETRY_END,
    U_RETRY_KEPT,
    U_RETRY_NEXT,
    machine,
)
from gpuhmm.coalesce.device.program import Program
from gpuhmm.coalesce.device.protocol import DeviceCounters
from gpuhmm.coalesce.trace import FaultTrace

#: Times that a driver may give stay below this: about 146 years, and no sum of them wraps.
_LAST = NEVER >> 1


class Gpu:
    """A :class:`~gpuhmm.coalesce.device.protocol.FaultingDevice`: SMs, µTLBs and a fault buffer.

    Blocks go to SMs in order as there is room, the first ones one to an SM.  A warp issues its accesses in
    order and waits only where the program says so.  A µTLB serves the warps of its SMs by the time at which
    they issue, one access after the other; one that finds no sufficient entry faults, and stays
    outstanding until a replay finds one.  The GMMU writes one fault each ``fault_interval_ns``; µTLBs wait
    for their turn.  With ``utlb_outstanding`` faults outstanding the next miss holds up everything behind
    it.  A miss on a page for which a fault is outstanding is a fault of its own.  Prefetches are not
    counted among the outstanding ones, hold up no warp, and are dropped once written.  A fault that finds
    the buffer full is outstanding, and is written at the next replay.

    The same ``seed`` gives the same run.  ``program`` must fit ``areas`` and its blocks the SMs, else
    ValueError.
    """

    def __init__(self, config: DeviceConfig, program: Program, areas: DeviceAreas, seed: int = 0) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 63:
            raise ValueError(f"seed must be a whole number within 0 and 2^63 - 1 (got {seed!r})")
        program.check(areas.npages)
        warps = -(-program.kernel_threads // WARP_LANES)
        most = min(config.warps_per_sm, config.threads_per_sm // WARP_LANES)
        if (warps > most).any():
            raise ValueError(f"blocks must have at most {most} warps (got {int(warps.max())})")
        self.config = config
        self.areas = areas
        self.gpcs, self.utlbs, self.sms = config.gpcs, config.utlbs, config.sms
        self.buffer_entries = config.buffer_entries
        self._kernels = program.kernels
        self._machine = machine(config, program, areas.npages, seed)
        self._counts = self._machine.device
        self._replays = 0
        sms = np.arange(config.sms)
        utlbs = sms // config.sms_per_utlb
        gpcs = config.gpc(utlbs)
        self._utlb_of = utlbs.astype(np.uint16)
        self._gpc_of = gpcs.astype(np.uint8)
        self._client_of = (sms - np.searchsorted(gpcs, gpcs)).astype(np.uint16)
        begin(self._machine)

    @property
    def counters(self) -> DeviceCounters:
        """What happened so far, a copy."""
        counts = self._counts
        return DeviceCounters(
            faults=int(counts[PUT]),
            same_utlb=int(counts[SAME_UTLB]),
            cross_utlb=int(counts[CROSS_UTLB]),
            refaults=int(counts[REFAULTS]),
            overflows=int(counts[OVERFLOWS]),
            replays=self._replays,
            accesses=int(counts[ACCESSES]),
            hits=int(counts[HITS]),
        )

    def outstanding(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return how many faults of each µTLB are outstanding: int64[utlbs]."""
        utlb = self._machine.utlb
        left = utlb[:, U_RETRY_END] - utlb[:, U_RETRY_NEXT] + utlb[:, U_RETRY_KEPT]
        return np.where(utlb[:, U_RETRY_END] > 0, left, utlb[:, U_OUT_COUNT])

    def next_fault(self, now: int, until: int | None = None) -> int | None:
        """Let the device go on until an entry is at or beyond GET; see the protocol."""
        self._run(NEVER - 1 if until is None else until, True)
        get = int(self._counts[GET])
        if self._counts[PUT] == get:
            return None
        return int(self._machine.faults[get % self.buffer_entries, F_TIME])

    def read_put(self, now: int) -> int:
        """Let the device go on until ``now`` and return PUT.  ValueError for a time that cannot be."""
        _check_time(now)
        self._run(now, False)
        return int(self._counts[PUT])

    def read(self, get: int, past: int) -> FaultTrace:
        """Return the entries ``[get, past)``.  ValueError unless they are between GET and PUT."""
        if not int(self._counts[GET]) <= get <= past <= int(self._counts[PUT]):
            first, last = int(self._counts[GET]), int(self._counts[PUT])
            raise ValueError(f"entries must be within {first} and {last} (got {get}, {past})")
        at = np.arange(get, past) % self.buffer_entries
        entries = self._machine.faults[at]
        places = entries[:, F_PAGE]
        sm = entries[:, F_SM]
        return FaultTrace(
            time=entries[:, F_TIME].astype(np.uint64),
            va=self.areas.addresses(places),
            access=entries[:, F_ACCESS].astype(np.uint8),
            space=self.areas.spaces[np.searchsorted(self.areas.firsts, places, side="right") - 1],
            gpc=self._gpc_of[sm],
            utlb=self._utlb_of[sm],
            sm=sm.astype(np.uint16),
            client=self._client_of[sm],
        )

    def write_get(self, get: int) -> None:
        """Make the room of the entries before ``get`` free.  ValueError unless between GET and PUT."""
        if not int(self._counts[GET]) <= get <= int(self._counts[PUT]):
            raise ValueError(
                f"GET must be within {int(self._counts[GET])} and {int(self._counts[PUT])} (got {get})"
            )
        self._counts[GET] = get

    def replay(self, now: int) -> None:
        """Let every stalled access be made again, ``replay_latency_ns`` from ``now``."""
        _check_time(now)
        self._run(now, False)
        send_replay(self._machine, now)
        self._replays += 1

    def report_prefetches(self, wanted: bool) -> None:
        """Write faults of prefetches into the buffer, or drop them from now on."""
        self._machine.device[PREFETCHES] = int(wanted)

    def stalled(self) -> int:
        """Accesses that wait for a replay, or for their turn after one."""
        return int(self._counts[STALLED])

    def running(self) -> bool:
        """True while a µTLB has something to do that waits for no replay."""
        return bool((self._machine.next_time < NEVER).any())

    def done(self) -> bool:
        """True when every kernel is finished."""
        return int(self._counts[KERNEL]) == self._kernels

    def _run(self, limit: int, until_fault: bool) -> None:
        run(self._machine, self.areas.entries, limit, until_fault)


def _check_time(now: int) -> None:
    if not 0 <= now < _LAST:
        raise ValueError(f"times must be whole ns within 0 and 2^62 (got {now})")
