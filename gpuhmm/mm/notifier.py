"""mmu_interval_notifier: how a driver learns that what it was told is stale.

Every invalidation of a space, between its start and its end, keeps the common sequence odd; a notifier
that it meets takes that sequence over.  A reader notes the sequence of its notifier, walks, and under its
own lock asks whether it is still the same.

Everything here may be called from any thread.  ``docs/threads.md`` says why that suffices.

Source: mm/mmu_notifier.c, include/linux/mmu_notifier.h (v5.18).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from errno import EAGAIN
from types import TracebackType
from typing import TYPE_CHECKING

from gpuhmm.mm.interval_tree import IntervalTree

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

# enum mmu_notifier_event
MMU_NOTIFY_UNMAP = 0
MMU_NOTIFY_CLEAR = 1
MMU_NOTIFY_PROTECTION_VMA = 2
MMU_NOTIFY_PROTECTION_PAGE = 3
MMU_NOTIFY_SOFT_DIRTY = 4
MMU_NOTIFY_RELEASE = 5
MMU_NOTIFY_MIGRATE = 6
MMU_NOTIFY_EXCLUSIVE = 7


class MmuNotifierRange:
    """A ``struct mmu_notifier_range``: what is invalidated, ``[start, end)`` bytes, and why.

    ``event`` is one of MMU_NOTIFY_*, ``owner`` the owner that MIGRATE and EXCLUSIVE carry.  Used with
    ``with`` it starts and ends the invalidation around the change of the page tables; where a callback
    refuses, BlockingIOError is raised and the change does not happen.
    """

    __slots__ = ("blockable", "end", "event", "owner", "start", "subscriptions", "thread")

    def __init__(
        self,
        subscriptions: NotifierSubscriptions,
        start: int,
        end: int,
        event: int,
        owner: int | None,
        blockable: bool,
    ) -> None:
        if not 0 <= start < end:
            raise ValueError(f"an invalidation must cover start < end (got {start:#x}, {end:#x})")
        if not MMU_NOTIFY_UNMAP <= event <= MMU_NOTIFY_EXCLUSIVE:
            raise ValueError(f"event must be one of MMU_NOTIFY_*, 0 to 7 (got {event})")
        self.subscriptions = subscriptions
        self.start = start
        self.end = end
        self.event = event
        self.owner = owner
        self.blockable = blockable
        self.thread: int | None = None  # who started it, while it is active

    def __enter__(self) -> MmuNotifierRange:
        if self.subscriptions.invalidate_range_start(self):
            raise BlockingIOError(EAGAIN, f"the driver refused a non-blockable invalidation of {self}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.subscriptions.invalidate_range_end(self)

    def __str__(self) -> str:
        return f"[{self.start:#x}, {self.end:#x})"


#: A driver's callback (``mmu_interval_notifier_ops.invalidate``): the notifier, what is invalidated and the
#: sequence to set.  It returns False where it would have to wait and ``range.blockable`` is false.
Invalidate = Callable[["MmuIntervalNotifier", MmuNotifierRange, int], bool]


class NotifierSubscriptions:
    """The interval notifiers of one address space and their common sequence, odd while invalidating.

    Source: mm/mmu_notifier.c:struct mmu_notifier_subscriptions (v5.18).
    """

    def __init__(self) -> None:
        #: Starts at 2: a notifier that is new in an idle space has one less, never a live sequence.
        self.invalidate_seq = 2
        self.active_invalidate_ranges = 0
        #: Invalidations that found a notifier so far, and calls of a notifier that they made.
        self.invalidations = 0
        self.notified = 0
        # Under this lock: all of the above and below.  It is never held while a callback runs.
        self._wq = threading.Condition(threading.Lock())
        self._itree: IntervalTree[MmuIntervalNotifier] = IntervalTree()
        self._deferred: list[MmuIntervalNotifier] = []
        self._active_in: dict[int, int] = {}  # thread -> invalidations that it has started and not ended

    @property
    def intervals(self) -> list[MmuIntervalNotifier]:
        """The notifiers in the tree, by start: those whose insertion waits are not among them."""
        with self._wq:
            return list(self._itree)

    @property
    def is_invalidating(self) -> bool:
        """True while an invalidation is on that met a notifier (mn_itree_is_invalidating)."""
        return bool(self.invalidate_seq & 1)

    # -- the side that changes page tables ----------------------------------------------------

    def invalidate_range(
        self,
        start: int,
        end: int,
        *,
        event: int = MMU_NOTIFY_CLEAR,
        owner: int | None = None,
        blockable: bool = True,
    ) -> MmuNotifierRange:
        """Return an invalidation of ``[start, end)`` bytes, to be used with ``with``.

        ValueError for an empty range or an unknown event.
        """
        return MmuNotifierRange(self, start, end, event, owner, blockable)

    def invalidate_range_start(self, range_: MmuNotifierRange) -> int:
        """Tell every notifier that meets ``range_``; 0, or -EAGAIN where one refused to block.

        After -EAGAIN the invalidation is over: it must not be ended, and nothing be changed.  RuntimeError
        for a callback that refuses although the range is blockable, ValueError for a range already started.

        Source: mm/mmu_notifier.c:mn_itree_invalidate, mn_itree_inv_start_range (v5.18).
        """
        me = threading.get_ident()
        with self._wq:
            if range_.thread is not None:
                raise ValueError(f"the invalidation of {range_} must be ended before it is started again")
            range_.thread = me
            self._active_in[me] = self._active_in.get(me, 0) + 1
            self.active_invalidate_ranges += 1
            # While the sequence is odd the tree stays as it is: the list stays right without the lock.
            hit = self._itree.overlapping(range_.start, range_.end - 1)
            if hit:
                self.invalidate_seq |= 1
                self.invalidations += 1
                self.notified += len(hit)
            cur_seq = self.invalidate_seq
        try:
            for sub in hit:
                if sub.ops_invalidate(sub, range_, cur_seq):
                    continue
                if range_.blockable:
                    raise RuntimeError(
                        "an invalidate callback must return True where the invalidation is blockable "
                        f"(got something else for {range_})"
                    )
                self.invalidate_range_end(range_)
                return -EAGAIN
        except BaseException:
            self.invalidate_range_end(range_)
            raise
        return 0

    def invalidate_range_end(self, range_: MmuNotifierRange) -> None:
        """End an invalidation; the last one makes the sequence even, and waiters go on.

        ValueError for one that was not started, or was ended.

        Source: mm/mmu_notifier.c:mn_itree_inv_end (v5.18).
        """
        with self._wq:
            if range_.thread is None:
                raise ValueError(f"the invalidation of {range_} must be started before it is ended, once")
            self._active_in[range_.thread] -= 1
            if not self._active_in[range_.thread]:
                del self._active_in[range_.thread]
            range_.thread = None
            self.active_invalidate_ranges -= 1
            if self.active_invalidate_ranges or not self.is_invalidating:
                return
            self.invalidate_seq += 1
            while self._deferred:  # the kernel's list, too, gives back last what came first
                sub = self._deferred.pop()
                if sub in self._itree:
                    self._itree.remove(sub)
                else:
                    self._itree.insert(sub.start, sub.end - 1, sub)
            self._wq.notify_all()

    # -- the side of the notifiers ------------------------------------------------------------

    def insert(self, sub: MmuIntervalNotifier) -> None:
        """Add a notifier: at once, or when the invalidations that are on have ended.

        Source: mm/mmu_notifier.c:__mmu_interval_notifier_insert (v5.18).
        """
        with self._wq:
            if not self.active_invalidate_ranges:
                # Odd, and not the sequence of any invalidation to come.
                sub.invalidate_seq = self.invalidate_seq - 1
                self._itree.insert(sub.start, sub.end - 1, sub)
                return
            if self.is_invalidating:
                self._deferred.append(sub)
            else:
                # Those that are on did not tell it: it counts as told, and readers wait for their end.
                self.invalidate_seq |= 1
                self._itree.insert(sub.start, sub.end - 1, sub)
            sub.invalidate_seq = self.invalidate_seq

    def remove(self, sub: MmuIntervalNotifier) -> None:
        """Take a notifier out; waits until the invalidations that may still call it have ended.

        Source: mm/mmu_notifier.c:mmu_interval_notifier_remove (v5.18).
        """
        with self._wq:
            if sub not in self._itree:
                if sub in self._deferred:
                    self._deferred.remove(sub)
                return
            if not self.is_invalidating:
                self._itree.remove(sub)
                return
            self._must_not_wait_for_myself("remove")
            self._deferred.append(sub)
            self._wait_for_end_of(self.invalidate_seq)

    def read_begin(self, sub: MmuIntervalNotifier) -> int:
        """See :meth:`MmuIntervalNotifier.read_begin`."""
        with self._wq:
            seq = sub.invalidate_seq
            if seq == self.invalidate_seq:
                self._must_not_wait_for_myself("read_begin")
                self._wait_for_end_of(seq)
            return seq

    def _wait_for_end_of(self, seq: int) -> None:
        self._wq.wait_for(lambda: self.invalidate_seq != seq)

    def _must_not_wait_for_myself(self, what: str) -> None:
        """RuntimeError if this thread is inside an invalidation: it would wait for itself for ever."""
        if threading.get_ident() in self._active_in:
            raise RuntimeError(
                f"{what} must not be called inside an invalidation of the same notifier: it waits for the "
                "end of that invalidation, which this thread itself would have to bring about"
            )


class MmuIntervalNotifier:
    """A ``struct mmu_interval_notifier`` over ``[start, end)`` bytes of ``mm``.

    Made by :meth:`AddressSpace.notifier`.  ``invalidate`` is the driver's callback.  It takes the driver's
    lock, calls :meth:`set_seq`, drops what the device has mapped of the range and returns True; it may leave
    the sequence alone for invalidations that the driver itself asked for.  Without one the sequence is set.
    """

    def __init__(self, mm: AddressSpace, start: int, end: int, invalidate: Invalidate | None = None) -> None:
        if not 0 <= start < end:
            raise ValueError(f"a notifier must cover start < end (got {start:#x}, {end:#x})")
        self.mm = mm
        self.start = start
        self.end = end
        self.ops_invalidate = _set_seq if invalidate is None else invalidate
        self.invalidate_seq = 0
        self._removing = threading.Lock()
        self._removed = False
        mm.subscriptions.insert(self)

    def read_begin(self) -> int:
        """Return the sequence to walk under; waits while this notifier is being invalidated.

        It must be called without the driver's lock and without ``mm.mmap_lock``: the invalidation needs
        them to come to its end.  What is returned may be stale already; a driver that bounds its time does so
        around its loop.  RuntimeError inside an invalidation by the same thread, which could never end, and
        after :meth:`remove`.

        Source: mm/mmu_notifier.c:mmu_interval_read_begin (v5.18).
        """
        self._check_in_use()
        return self.mm.subscriptions.read_begin(self)

    def set_seq(self, cur_seq: int) -> None:
        """Make every walk that began before stale; for callbacks, under the driver's lock.

        ValueError for a sequence that is not that of an invalidation.  Source:
        include/linux/mmu_notifier.h:mmu_interval_set_seq (v5.18).
        """
        if not cur_seq & 1:
            raise ValueError(
                f"set_seq must be given the cur_seq of its callback, which is odd (got {cur_seq})"
            )
        self.invalidate_seq = cur_seq

    def check_retry(self, seq: int) -> bool:
        """True if an invalidation came since ``read_begin`` returned ``seq``.

        Asked without a lock: True is certain, False is not.  Source:
        include/linux/mmu_notifier.h:mmu_interval_check_retry (v5.18).
        """
        self._check_in_use()
        return self.invalidate_seq != seq

    def read_retry(self, seq: int) -> bool:
        """True if the walk must be done again; ask it under the driver's lock.

        Source: include/linux/mmu_notifier.h:mmu_interval_read_retry (v5.18).
        """
        self._check_in_use()
        return self.invalidate_seq != seq

    def invalidate(self, event: int = MMU_NOTIFY_CLEAR, owner: int | None = None) -> None:
        """invalidate_range_start and invalidate_range_end over this notifier's own range."""
        self._check_in_use()
        with self.mm.subscriptions.invalidate_range(self.start, self.end, event=event, owner=owner):
            pass

    def remove(self) -> None:
        """Take the notifier out; its callback does not run any more once this has returned.

        Waits for invalidations that are on.  ValueError if it was removed already, RuntimeError inside an
        invalidation by the same thread.

        Source: mm/mmu_notifier.c:mmu_interval_notifier_remove (v5.18).
        """
        with self._removing:
            if self._removed:
                raise ValueError("this notifier was removed already")
            self._removed = True
        try:
            self.mm.subscriptions.remove(self)
        except RuntimeError:
            self._removed = False
            raise

    def _check_in_use(self) -> None:
        if self._removed:
            raise RuntimeError("a notifier must not be used after it was removed")


def _set_seq(notifier: MmuIntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
    """The callback of a notifier that has none: the sequence alone."""
    notifier.invalidate_seq = cur_seq
    return True
