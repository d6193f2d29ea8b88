"""A device in plain Python that makes a list of accesses, each once its time has come."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gpuhmm.coalesce.access import ACCESS_NEEDS, ACCESS_PREFETCH
from gpuhmm.coalesce.areas import DeviceAreas
from gpuhmm.coalesce.device.protocol import DeviceCounters
from gpuhmm.coalesce.trace import FaultTrace


@dataclass
class ScriptedDevice:
    """Makes ``accesses`` (time, va, access, utlb) in space 0; a stalled one is made again by a replay."""

    areas: DeviceAreas
    accesses: list[tuple[int, int, int, int]]
    buffer_entries: int = 4096
    gpcs: int = 1
    utlbs: int = 64
    sms: int = 64
    counters: DeviceCounters = field(default_factory=DeviceCounters)

    def __post_init__(self) -> None:
        self.waiting = sorted(self.accesses)
        self.outstanding: list[tuple[int, int, int, int]] = []
        self.entries: list[tuple[int, int, int, int]] = []
        self.get = 0
        self.prefetches = True

    def _make(self, access: tuple[int, int, int, int]) -> None:
        time, va, kind, utlb = access
        time = max(time, self.entries[-1][0]) if self.entries else time
        access = (time, va, kind, utlb)
        self.counters.accesses += 1
        place = self.areas.place(0, va)
        if self.areas.entries[place] & ACCESS_NEEDS[kind] == ACCESS_NEEDS[kind]:
            self.counters.hits += 1
            return
        if kind == ACCESS_PREFETCH and not self.prefetches:
            return
        self.outstanding.append(access)
        if len(self.entries) - self.get < self.buffer_entries:
            self.entries.append(access)
            self.counters.faults += 1
        else:
            self.counters.overflows += 1

    def _run(self, now: int) -> None:
        while self.waiting and self.waiting[0][0] <= now:
            self._make(self.waiting.pop(0))

    def next_fault(self, now: int, until: int | None = None) -> int | None:
        self._run(now)
        while len(self.entries) == self.get and self.waiting:
            if until is not None and self.waiting[0][0] > until:
                return None
            self._run(self.waiting[0][0])
        return self.entries[self.get][0] if len(self.entries) > self.get else None

    def read_put(self, now: int) -> int:
        self._run(now)
        return len(self.entries)

    def read(self, get: int, past: int) -> FaultTrace:
        rows = self.entries[get:past]
        columns = {
            "time": np.array([row[0] for row in rows], dtype=np.uint64),
            "va": np.array([row[1] for row in rows], dtype=np.uint64),
            "access": np.array([row[2] for row in rows], dtype=np.uint8),
            "utlb": np.array([row[3] for row in rows], dtype=np.uint16),
        }
        return FaultTrace.of(**columns)

    def write_get(self, get: int) -> None:
        assert self.get <= get <= len(self.entries)
        self.get = get

    def replay(self, now: int) -> None:
        self.counters.replays += 1
        again, self.outstanding = self.outstanding, []
        for _, va, kind, utlb in again:
            self._make((now, va, kind, utlb))

    def report_prefetches(self, wanted: bool) -> None:
        self.prefetches = wanted

    def stalled(self) -> int:
        return len(self.outstanding)

    def running(self) -> bool:
        return bool(self.waiting)

    def done(self) -> bool:
        return not self.waiting and not self.outstanding
