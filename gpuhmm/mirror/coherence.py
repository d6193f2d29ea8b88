"""How a device page table is filled from that of a process and kept coherent with it.

Source: lib/test_hmm.c:dmirror_interval_invalidate, dmirror_range_fault, dmirror_do_fault (v6.1).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EBUSY, EFAULT
from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.hmm.backends import BackendInfo, walk_range
from gpuhmm.hmm.loop import REQUESTS, tries
from gpuhmm.hmm.ranges import HmmRange, RangeStats
from gpuhmm.hmm.words import HMM_PFN_WRITE, word_layout
from gpuhmm.mirror.page_table import DPT_VALID, DPT_WRITE, DevicePageTable
from gpuhmm.mm.notifier import MMU_NOTIFY_MIGRATE, MmuIntervalNotifier, MmuNotifierRange
from gpuhmm.mm.tables import Words

if TYPE_CHECKING:
    from gpuhmm.memory.pages.device import DeviceMemory
    from gpuhmm.memory.space import AddressSpace


@dataclass
class MirrorCounters:
    """What a mirror did since it was made."""

    #: Calls of hmm_range_fault().
    calls: int = 0
    #: Calls of handle_mm_fault() that they made.
    faults: int = 0
    #: Walks that were done again: -EBUSY, and sequences that were stale under the driver's lock.
    retries: int = 0
    #: Invalidations that the notifier told, those of the driver's own migrations excepted.
    invalidations: int = 0
    #: Entries of the device page table that these took away.
    invalidated_pages: int = 0
    #: Pages that went into the device page table.
    pages: int = 0


class _Here(threading.local):
    """What one thread is doing with a mirror."""

    def __init__(self) -> None:
        self.moving_to_device = False
        self.moves = 0


class CoherentPageTable:
    """A :class:`DevicePageTable` with the notifier and the lock that keep it right.

    Every entry that it holds is what the page table of ``mm`` grants at that moment, or less.
    """

    def __init__(
        self,
        mm: AddressSpace,
        device: DeviceMemory,
        backend: BackendInfo,
        range_pages: int,
        timeout_ms: float,
    ) -> None:
        self.mm = mm
        self.device = device
        self.backend = backend
        self.range_pages = range_pages
        self.timeout_ms = timeout_ms
        self.counters = MirrorCounters()
        self.entries = DevicePageTable()
        #: The driver's lock: over the entries and the counters, taken in callbacks.
        self.mutex = threading.Lock()
        self._moves = 0  # migrations of own pages: by all threads, and in _here by each
        self._here = _Here()
        self.notifier = mm.notifier(0, mm.task_size, self._invalidate)

    def ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the pieces of ``[start, end)`` bytes that one walk is asked for."""
        for low in range(start, end, self.range_pages << 12):
            yield low, min(low + (self.range_pages << 12), end)

    # -- faults -------------------------------------------------------------------------------

    def fault(self, start: int, end: int, write: bool) -> int:
        """Map ``[start, end)`` for the device, a range at a time; 0 or a negative errno (dmirror_fault)."""
        request = REQUESTS["write" if write else "read"]
        for low, high in self.ranges(start, end):

            def accept(words: Words, low: int = low) -> int:
                return self._do_fault(low, words, write)

            ret = self.range_fault(self.notifier, low, high, request, accept)
            if ret:
                return ret
        return 0

    def snapshot(self, start: int, end: int, accept: Callable[[Words], int]) -> int:
        """Walk one range without faulting; return what ``accept`` makes of the words.

        The walk has a notifier of its own, so that what happens outside the range does not matter
        (dmirror_range_snapshot).
        """
        notifier = self.mm.notifier(start, end, self._invalidate_snapshot)
        try:
            return self.range_fault(notifier, start, end, 0, accept)
        finally:
            notifier.remove()

    def range_fault(
        self,
        notifier: MmuIntervalNotifier,
        start: int,
        end: int,
        default_flags: int,
        accept: Callable[[Words], int],
    ) -> int:
        """Walk until nothing came in between; return what ``accept`` makes of the words, under the lock.

        A negative errno of the walk, -EBUSY if the time was up (dmirror_range_fault).
        """
        for seq in tries(notifier, self.timeout_ms):
            stats, moves = RangeStats(), self._moves_by_others
            range_ = HmmRange(
                notifier,
                start,
                end,
                np.zeros((end - start) >> 12, dtype=np.uint64),
                notifier_seq=seq,
                default_flags=default_flags,
                dev_private_owner=self.device.owner,
                stats=stats,
            )
            ret = walk_range(range_, self.backend)
            with self.mutex:
                self.counters.calls += 1
                self.counters.faults += stats.faults
                if ret not in (0, -EBUSY):
                    return ret
                stale = notifier.read_retry(seq) or moves != self._moves_by_others
                if ret == 0 and not stale:
                    return accept(range_.hmm_pfns)
                self.counters.retries += 1
        return -EBUSY

    def _do_fault(self, start: int, words: Words, write: bool) -> int:
        """Put the words of a walk into the device page table; under the lock (dmirror_do_fault)."""
        writable = (words & HMM_PFN_WRITE) != 0
        if write and not writable.all():
            return -EFAULT  # a read-only entry of own device-private memory is never made writable
        pfns = words & word_layout(self.mm.kernel).pfn
        self.store(start, pfns | np.where(writable, DPT_WRITE, np.uint64(0)))
        return 0

    def store(self, start: int, entries: Words) -> None:
        """Let the device reach the pages from ``start`` on: PFNs and DPT_* bits; under the lock."""
        self.entries.store(start, entries | DPT_VALID)
        self.counters.pages += len(entries)

    # -- invalidations ------------------------------------------------------------------------

    @property
    def _moves_by_others(self) -> int:
        """Migrations of own pages by other threads, which leave the notifier's sequence alone."""
        return self._moves - self._here.moves

    @contextmanager
    def moving_to_device(self) -> Iterator[None]:
        """While this thread moves pages to the device; it maps again afterwards what did not come."""
        self._here.moving_to_device = True
        try:
            yield
        finally:
            self._here.moving_to_device = False

    def _invalidate(self, notifier: MmuIntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
        """The notifier's callback (dmirror_interval_invalidate).

        The driver's own migrations do not set the sequence: a walk of the same thread goes on as in Linux.
        Linux's driver leaves it at that, so that a second thread may use or map what is just moving; here the
        entries go first, moves are counted, and the walk of the other thread is done again.
        """
        if not self.mutex.acquire(blocking=range_.blockable):
            return False
        try:
            if range_.event == MMU_NOTIFY_MIGRATE and range_.owner == self.device.owner:
                self._moves += 1
                self._here.moves += 1
                first = self.device.first_pfn
                own = range(first, first + self.device.npages)
                self.entries.erase(range_.start, range_.end, None if self._here.moving_to_device else own)
                return True
            notifier.set_seq(cur_seq)
            self.counters.invalidations += 1
            self.counters.invalidated_pages += self.entries.erase(range_.start, range_.end)
        finally:
            self.mutex.release()
        return True

    def _invalidate_snapshot(
        self, notifier: MmuIntervalNotifier, range_: MmuNotifierRange, cur_seq: int
    ) -> bool:
        """The callback of a snapshot: it is stale as a whole (dmirror_snapshot_invalidate)."""
        if not self.mutex.acquire(blocking=range_.blockable):
            return False
        notifier.set_seq(cur_seq)
        self.mutex.release()
        return True
