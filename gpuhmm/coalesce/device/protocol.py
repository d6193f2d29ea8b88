"""What a driver sees of a device that faults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gpuhmm.coalesce.areas import DeviceAreas
from gpuhmm.coalesce.trace import FaultTrace


@dataclass
class DeviceCounters:
    """What a device did so far."""

    #: Entries that were written into the fault buffer.
    faults: int = 0
    #: Faults of a µTLB for a page for which it has one outstanding already.
    same_utlb: int = 0
    #: Faults for a page for which only other µTLBs have one outstanding.
    cross_utlb: int = 0
    #: Faults written again for an access that was replayed and still found no mapping.
    refaults: int = 0
    #: Faults that found the buffer full; they are written after the next replay.
    overflows: int = 0
    #: Replays that the driver asked for.
    replays: int = 0
    #: Accesses to pages, by lanes of a warp joined, and those that found the page mapped at first sight.
    accesses: int = 0
    hits: int = 0


class FaultingDevice(Protocol):
    """A device with a replayable fault buffer.

    Times are ns since the start, and never fall from call to call.  Entries of the buffer are counted from
    the first one ever written: GET and PUT are such counts, so that nothing wraps.  Between two calls a
    driver may change ``areas.entries``; an access sees the entries as they are when it is made.
    """

    areas: DeviceAreas
    #: GPC, µTLB and SM numbers of the device are below these.
    gpcs: int
    utlbs: int
    sms: int
    #: Entries that the buffer holds.
    buffer_entries: int

    @property
    def counters(self) -> DeviceCounters:
        """What the device did so far."""
        ...

    def next_fault(self, now: int, until: int | None = None) -> int | None:
        """Let the device go on from ``now`` until an entry is at or beyond GET; return when it was written.

        That may be before ``now``.  None if there is none by the time ``until``, or without one if there
        never will be: the work is done, or everything that is left waits for a replay.
        """
        ...

    def read_put(self, now: int) -> int:
        """Let the device go on until ``now`` and return PUT."""
        ...

    def read(self, get: int, past: int) -> FaultTrace:
        """Return the entries ``[get, past)``, which are between GET and PUT."""
        ...

    def write_get(self, get: int) -> None:
        """Make the room of the entries before ``get`` free."""
        ...

    def replay(self, now: int) -> None:
        """Let every stalled access be made again, from ``now`` on; those still unmapped fault again."""
        ...

    def report_prefetches(self, wanted: bool) -> None:
        """Write faults of prefetches into the buffer, as at the beginning, or drop them from now on."""
        ...

    def stalled(self) -> int:
        """Accesses that wait for a replay."""
        ...

    def running(self) -> bool:
        """True while the device has something to do that waits for no replay."""
        ...

    def done(self) -> bool:
        """True when the work is finished and nothing is stalled."""
        ...
