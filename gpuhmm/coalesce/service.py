"""What a driver works with while it serves faults: the buffer, a clock, HMM, the device page table.

A driver's policy says what is fetched together, what is asked for and when is replayed; everything that
all drivers do the same way is here, and counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.coalesce.access import ACCESS_NEEDS
from gpuhmm.coalesce.areas import BLOCK_SHIFT, DPT_CANCELLED, place_keys
from gpuhmm.coalesce.batches import Batch
from gpuhmm.coalesce.timeline import Timeline
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.mirror.page_table import DPT_VALID, DPT_WRITE
from gpuhmm.mm.notifier import MmuIntervalNotifier, MmuNotifierRange
from gpuhmm.mm.tables import Words

if TYPE_CHECKING:
    from gpuhmm.coalesce.costs import Costs
    from gpuhmm.coalesce.cpu_side import CpuActivity
    from gpuhmm.coalesce.device.protocol import FaultingDevice
    from gpuhmm.memory.space import AddressSpace
    from gpuhmm.mm.vma import Vma

#: Called with the bytes ``[start, end)`` that an invalidation takes from a notifier's range.
OnInvalidate = Callable[[int, int], None]


class FaultService:
    """The driver's side of a device.

    ``clock`` is the time in ns; ``batch`` the batch that is being served; ``batches`` those that were.
    ``backend`` is that of :func:`gpuhmm.hmm_range_fault`, by name.
    """

    def __init__(
        self,
        device: FaultingDevice,
        spaces: Sequence[AddressSpace],
        costs: Costs,
        backend: str,
        cpu: CpuActivity | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        self.device = device
        self.areas = device.areas
        self.spaces = spaces
        self.costs = costs
        self.backend = backend
        self.cpu = cpu
        self.timeline = Timeline() if timeline is None else timeline
        self.clock = 0
        self.get = 0
        self.batches: list[Batch] = []
        self.batch = Batch()
        self._overflows = 0
        self._rest = 0.0

    # -- time ---------------------------------------------------------------------------------

    def spend(self, step: str, count: int = 1) -> None:
        """Let ``count`` times the cost of a step pass; a field of :class:`gpuhmm.coalesce.costs.Costs`."""
        exact = getattr(self.costs, step) * count + self._rest
        passed = int(exact)
        self._rest = exact - passed
        self.clock += passed
        phase = _PHASES[step]
        setattr(self.batch, phase, getattr(self.batch, phase) + passed)

    def wait(self, ns: int) -> None:
        """Let time pass in which the driver sleeps."""
        self.clock += ns

    def run_cpu(self) -> None:
        """Let the CPU do what it has done until now."""
        if self.cpu is not None:
            for space, start, end in self.cpu.run(self.clock):
                self.timeline.mark(
                    "invalidation", self.clock, self.clock, len(self.batches), space, start, end
                )

    # -- the fault buffer ---------------------------------------------------------------------

    def read_put(self) -> int:
        """Return PUT, read from the device."""
        self.spend("read_put")
        return self.device.read_put(self.clock)

    def fetch(self, past: int) -> FaultTrace:
        """Return the entries from GET up to ``past``, and move GET there."""
        entries = self.device.read(self.get, past)
        self.spend("fetch", len(entries))
        self.get = past
        self.device.write_get(past)
        return entries

    def flush(self, past: int) -> None:
        """Drop the entries from GET up to ``past``; a replay makes their accesses fault again."""
        dropped = max(past - self.get, 0)
        self.spend("flush", dropped)
        self.batch.flushed += dropped
        self.get = max(past, self.get)
        self.device.write_get(self.get)

    def replay(self) -> None:
        """Let every stalled access be made again."""
        self.spend("replay")
        self.batch.replays += 1
        self.timeline.mark("replay", self.clock, self.clock, len(self.batches))
        self.device.replay(self.clock)

    # -- batches ------------------------------------------------------------------------------

    def begin_batch(self, entries: FaultTrace) -> None:
        """Open a batch of the entries that were read, and count what they are; see also :meth:`end_batch`.

        What was spent since the last batch belongs to it.
        """
        batch = self.batch
        batch.start = self.clock - batch.fetch_ns
        keys = place_keys(entries.space, entries.va)
        pages, of_page = np.unique(keys, return_inverse=True)
        by_utlb = len(np.unique((of_page << 16) | entries.utlb))
        batch.raw = batch.coalesced = len(entries)
        batch.unique = len(pages)
        batch.same_utlb = len(entries) - by_utlb
        batch.cross_utlb = by_utlb - len(pages)
        in_block = np.unique(pages >> np.uint64(BLOCK_SHIFT - 12), return_counts=True)[1]
        batch.va_blocks = len(in_block)
        batch.most_in_block = int(in_block.max(initial=0))
        batch.covered = self._covered(entries, keys)
        self.timeline.see(entries, len(self.batches))

    def _covered(self, entries: FaultTrace, keys: Words) -> int:
        places = self.areas.places(entries.space, entries.va)
        there = np.where(places >= 0, self.areas.entries[places], np.uint64(0))
        needs = ACCESS_NEEDS[entries.access]
        missing = np.unique(keys[(there & needs) != needs])
        return self.batch.unique - len(missing)

    def end_batch(self) -> None:
        """Close the batch: its counts are final."""
        batch = self.batch
        batch.end = self.clock
        batch.overflows = self.device.counters.overflows - self._overflows
        self._overflows = self.device.counters.overflows
        self.timeline.mark("batch", batch.start, batch.end, len(self.batches), pages=batch.raw)
        self.batches.append(batch)
        self.batch = Batch()

    def close(self) -> None:
        """Count what came after the last batch, invalidations above all, with it."""
        if self.batches:
            last = self.batches[-1]
            last.invalidations += self.batch.invalidations
            last.invalidated_pages += self.batch.invalidated_pages
            last.replays += self.batch.replays
            last.flushed += self.batch.flushed
            last.overflows += self.device.counters.overflows - self._overflows
            self.timeline.end(len(self.batches))

    # -- address spaces and the device page table ---------------------------------------------

    def vma(self, space: int, va: int) -> Vma | None:
        """Return the VMA that holds ``va``, or None."""
        return self.spaces[space].vmas.lookup(va)

    def notifier(
        self, space: int, start: int, end: int, on_invalidate: OnInvalidate | None = None
    ) -> MmuIntervalNotifier:
        """Return a new notifier over ``[start, end)`` that takes from the device what is invalidated.

        ``on_invalidate`` hears of the part that lies in the notifier's range, before that.
        """

        def invalidate(notifier: MmuIntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
            notifier.set_seq(cur_seq)
            low, high = max(range_.start, notifier.start), min(range_.end, notifier.end)
            if on_invalidate is not None:
                on_invalidate(low, high)
            self.take_away(space, low, high)
            return True

        return self.spaces[space].notifier(start, end, invalidate)

    def take_away(self, space: int, start: int, end: int) -> None:
        """Take ``[start, end)`` from the device because a notifier's callback says so, and count both.

        For drivers that make notifiers of their own on the space, with a callback that sees the event.
        """
        self.batch.invalidations += 1
        self.batch.invalidated_pages += self.areas.erase(space, start, end)

    def cancel(self, space: int, va: int) -> None:
        """Cancel the faults of a page that can never be had: its accesses end in an error at the replay."""
        place = self.areas.place(space, va)
        if place < 0:
            raise ValueError(f"a fault at {va:#x} of space {space} lies outside of the device's areas")
        self.batch.cancelled += not self.areas.entries[place] & DPT_CANCELLED
        self.areas.entries[place] = DPT_VALID | DPT_WRITE | DPT_CANCELLED


_PHASES = {
    "interrupt": "fetch_ns",
    "read_put": "fetch_ns",
    "fetch": "fetch_ns",
    "preprocess": "preprocess_ns",
    "batch": "service_ns",
    "block": "service_ns",
    "walk": "service_ns",
    "fault": "service_ns",
    "page": "service_ns",
    "flush": "replay_ns",
    "replay": "replay_ns",
}
