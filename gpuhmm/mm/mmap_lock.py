"""mmap_lock: many walk, or one changes.

A walk holds it for reading, whatever changes page tables, areas or page state holds it for writing.  Where
Linux lets faults run side by side under ``mmap_lock`` and a lock a table, here a fault is a change like any
other.  ``docs/threads.md`` says what follows from that.

Source: include/linux/mmap_lock.h; kernel/locking/rwsem.c for readers and writers, served in turn (v5.18).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class MmapLock:
    """A lock for any number of readers or one writer, served in the order in which they come.

    Every hold nests in every other of the same thread.  Writing inside reading gives the read hold up
    until the write hold is there, and takes it back, without a gap, when writing ends: what was read
    before may have changed, and :meth:`write` says whether it did.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition(threading.Lock())
        self._waiting: deque[object] = deque()
        self._readers = 0  # threads that hold it for reading only
        self._writing = False
        self._writes = 0  # write holds so far
        self._mine = _Holds()
        self._read = _Read(self)
        self._write = _Write(self)
        self._released = _Released(self)

    def read(self) -> _Read:
        """Hold the lock for reading: ``with lock.read():``."""
        return self._read

    def write(self) -> _Write:
        """Hold the lock for writing: ``with lock.write() as undisturbed:``.

        ``undisturbed`` is False if the thread was reading and another wrote before its turn came.
        """
        return self._write

    def released(self) -> _Released:
        """Give a read hold up for a while, to wait for what others change: ``with lock.released():``.

        A thread that holds the lock for writing, or not at all, goes on as it is.
        """
        return self._released

    @property
    def held(self) -> bool:
        """True if this thread holds the lock, in whatever way."""
        return bool(self._mine.reads or self._mine.writes)

    def _take(self, writing: bool) -> None:
        """Wait for this thread's turn, then count it in; under ``_turn``."""
        if self._waiting or self._writing or (writing and self._readers):
            ticket = object()
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or self._writing or (writing and self._readers):
                    self._turn.wait()
            finally:
                self._waiting.remove(ticket)
                self._turn.notify_all()  # who comes next may be a reader too
        if writing:
            self._writing = True
            self._writes += 1
        else:
            self._readers += 1

    def _give(self, writing: bool) -> None:
        if writing:
            self._writing = False
        else:
            self._readers -= 1
        if self._waiting:
            self._turn.notify_all()


class _Holds(threading.local):
    """The holds of one thread."""

    def __init__(self) -> None:
        self.reads = 0
        self.writes = 0
        self.given_up: list[int] = []


class _Read:
    def __init__(self, lock: MmapLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        lock, mine = self._lock, self._lock._mine
        if not mine.reads and not mine.writes:
            with lock._turn:
                lock._take(writing=False)
        mine.reads += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lock, mine = self._lock, self._lock._mine
        mine.reads -= 1
        if not mine.reads and not mine.writes:
            with lock._turn:
                lock._give(writing=False)


class _Write:
    def __init__(self, lock: MmapLock) -> None:
        self._lock = lock

    def __enter__(self) -> bool:
        lock, mine = self._lock, self._lock._mine
        undisturbed = True
        if not mine.writes:
            with lock._turn:
                before = lock._writes
                if mine.reads:
                    lock._give(writing=False)
                try:
                    lock._take(writing=True)
                except BaseException:  # a signal's: the caller goes on with what it had
                    if mine.reads:
                        lock._take(writing=False)
                    raise
                undisturbed = not mine.reads or lock._writes == before + 1
        mine.writes += 1
        return undisturbed

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lock, mine = self._lock, self._lock._mine
        mine.writes -= 1
        if not mine.writes:
            with lock._turn:
                if mine.reads:
                    lock._readers += 1  # before the write hold goes: nobody writes in between
                lock._give(writing=True)


class _Released:
    def __init__(self, lock: MmapLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        lock, mine = self._lock, self._lock._mine
        mine.given_up.append(0 if mine.writes else mine.reads)
        if mine.given_up[-1]:
            mine.reads = 0
            with lock._turn:
                lock._give(writing=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lock, mine = self._lock, self._lock._mine
        reads = mine.given_up.pop()
        if reads:
            with lock._turn:
                lock._take(writing=False)
            mine.reads = reads


class HasMmapLock(Protocol):
    """An address space, or what shares its lock."""

    @property
    def mmap_lock(self) -> MmapLock:
        """The lock."""
        ...


Space = TypeVar("Space", bound=HasMmapLock)
Rest = ParamSpec("Rest")
Result = TypeVar("Result")


def write_locked(
    operation: Callable[Concatenate[Space, Rest], Result],
) -> Callable[Concatenate[Space, Rest], Result]:
    """Return ``operation`` with the ``mmap_lock`` of its first argument held for writing around it."""

    @wraps(operation)
    def locked(mm: Space, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        with mm.mmap_lock.write():
            return operation(mm, *args, **kwargs)

    return locked
