"""Streams as queues of work that is done as late as CUDA allows.

Work is done when somebody waits for it or for what depends on it, never before: a host that reads too
early, and a stream that was not told to wait for another, see what was there.
Sources: CUDA Driver API 13.0, "Stream synchronization behavior" (legacy default stream,
CU_STREAM_NON_BLOCKING) and "API synchronization behavior".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

#: The legacy default stream.
DEFAULT = 0


@dataclass
class Work:
    """Something queued, and what must be done before."""

    do: Callable[[], None]
    after: list[Work]
    done: bool = False


@dataclass
class _Stream:
    blocking: bool
    last: Work | None = None


@dataclass
class Streams:
    """The streams of a device, by handle."""

    _streams: dict[int, _Stream] = field(default_factory=lambda: {DEFAULT: _Stream(False)})
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _handles: int = 1000
    #: The last work of streams that were destroyed.
    _left: list[Work | None] = field(default_factory=list)

    def create(self, blocking: bool) -> int:
        """Return the handle of a new stream; a blocking one is ordered with the default stream."""
        with self._lock:
            self._handles += 1
            self._streams[self._handles] = _Stream(blocking)
            return self._handles

    def destroy(self, handle: int) -> None:
        """Forget a stream; what is left in it is done when all work is waited for."""
        with self._lock:
            self._left.append(self._stream(handle).last)
            del self._streams[handle]

    def put(self, handle: int, do: Callable[[], None], *after: Work | None) -> Work:
        """Queue work in a stream, also after other work; ValueError for a handle that is none."""
        with self._lock:
            stream = self._stream(handle)
            before = [stream.last, *after]
            if handle == DEFAULT:
                before += [other.last for other in self._streams.values() if other.blocking] + self._left
            elif stream.blocking:
                before.append(self._streams[DEFAULT].last)
            stream.last = Work(do, [work for work in before if work and not work.done])
            return stream.last

    def wait(self, handle: int) -> None:
        """Do all work of a stream, and what it depends on."""
        with self._lock:
            self.wait_for(self._stream(handle).last)

    def wait_for_all(self) -> None:
        """Do all work."""
        with self._lock:
            for work in [stream.last for stream in self._streams.values()] + self._left:
                self.wait_for(work)
            self._left.clear()

    def wait_for(self, work: Work | None) -> None:
        """Do this work after what it depends on."""
        with self._lock:
            stack = [work] if work else []
            while stack:
                top = stack[-1]
                left = [before for before in top.after if not before.done]
                if top.done or not left:
                    stack.pop()
                if left:
                    stack += left
                elif not top.done:
                    top.done, top.after = True, []
                    top.do()

    def _stream(self, handle: int) -> _Stream:
        if handle not in self._streams:
            raise ValueError(f"a stream must have been created here (got {handle:#x})")
        return self._streams[handle]
