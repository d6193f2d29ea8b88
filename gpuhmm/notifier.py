"""mmu_interval_notifier: how a driver learns that what it was told is stale.

Source: mm/mmu_notifier.c (v5.18).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuhmm.space import AddressSpace


class NotifierSubscriptions:
    """The interval notifiers of one address space and their common sequence, odd while invalidating."""

    def __init__(self) -> None:
        self.invalidate_seq = 2
        self.active_invalidate_ranges = 0
        self.intervals: list[MmuIntervalNotifier] = []

    @contextmanager
    def invalidate_range(self, start: int, end: int) -> Iterator[None]:
        """invalidate_range_start on entry and invalidate_range_end on exit, over ``[start, end)``."""
        self.active_invalidate_ranges += 1
        hit = [sub for sub in self.intervals if sub.start < end and start < sub.end]
        if hit:
            self.invalidate_seq |= 1
        for sub in hit:
            sub.invalidate_seq = self.invalidate_seq
        try:
            yield
        finally:
            self.active_invalidate_ranges -= 1
            if not self.active_invalidate_ranges and self.invalidate_seq & 1:
                self.invalidate_seq += 1


class MmuIntervalNotifier:
    """A ``struct mmu_interval_notifier`` over ``[start, end)`` bytes of ``mm``.

    Made by :meth:`AddressSpace.notifier`.
    """

    def __init__(self, mm: AddressSpace, start: int, end: int) -> None:
        self.mm = mm
        self.start = start
        self.end = end
        subscriptions = mm.subscriptions
        if subscriptions.active_invalidate_ranges:
            subscriptions.invalidate_seq |= 1
            self.invalidate_seq = subscriptions.invalidate_seq
        else:
            self.invalidate_seq = subscriptions.invalidate_seq - 1
        subscriptions.intervals.append(self)

    def read_begin(self) -> int:
        """Return the sequence to walk under (mmu_interval_read_begin).

        RuntimeError while the notifier is being invalidated: in one thread nothing could end that.
        """
        if self.invalidate_seq == self.mm.subscriptions.invalidate_seq:
            raise RuntimeError("read_begin must not be called inside an invalidation of the same notifier")
        return self.invalidate_seq

    def check_retry(self, seq: int) -> bool:
        """True if an invalidation came since ``read_begin`` returned ``seq`` (mmu_interval_check_retry)."""
        return self.invalidate_seq != seq

    def read_retry(self, seq: int) -> bool:
        """True if the walk must be done again; ask it under the driver's lock (mmu_interval_read_retry)."""
        return self.invalidate_seq != seq

    def invalidate(self) -> None:
        """invalidate_range_start and invalidate_range_end over this notifier's own range."""
        with self.mm.subscriptions.invalidate_range(self.start, self.end):
            pass

    def remove(self) -> None:
        """Take the notifier out (mmu_interval_notifier_remove).  ValueError if it is out already."""
        if self not in self.mm.subscriptions.intervals:
            raise ValueError("this notifier was removed already")
        self.mm.subscriptions.intervals.remove(self)
