"""What happened when: the marks that a run leaves, and the faults that its driver saw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.trace import FaultTrace, concatenate

#: Kinds of marks.
MARKS = ("batch", "service", "replay", "invalidation", "retry")

#: One row a mark: times in ns, the batch it belongs to, what it is about, and how many pages.
MARK_DTYPE = np.dtype(
    [
        ("kind", np.uint8),
        ("start", np.uint64),
        ("end", np.uint64),
        ("batch", np.uint32),
        ("space", np.uint16),
        ("va", np.uint64),
        ("va_end", np.uint64),
        ("pages", np.uint32),
    ]
)

#: Marks and faults that are kept; a run that makes more says so.
MAX_MARKS = 5_000_000
MAX_FAULTS = 20_000_000


class Timeline:
    """Keeps marks and faults, up to MAX_MARKS and MAX_FAULTS of them; with ``keep=False`` none."""

    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
        self.left_out = 0
        self._marks: list[tuple[int, int, int, int, int, int, int, int]] = []
        self._faults: list[FaultTrace] = []
        self._batches: list[int] = []
        self._seen = 0

    def mark(
        self,
        kind: str,
        start: int,
        end: int,
        batch: int,
        space: int = 0,
        va: int = 0,
        va_end: int = 0,
        pages: int = 0,
    ) -> None:
        """Keep a mark of one of MARKS."""
        if not self.keep or len(self._marks) >= MAX_MARKS:
            self.left_out += self.keep
            return
        self._marks.append((MARKS.index(kind), start, end, batch, space, va, va_end, pages))

    def see(self, entries: FaultTrace, batch: int) -> None:
        """Keep the faults of a batch."""
        if not self.keep or self._seen + len(entries) > MAX_FAULTS:
            self.left_out += len(entries) * self.keep
            return
        self._seen += len(entries)
        self._faults.append(entries)
        self._batches.append(batch)

    def end(self, batches: int) -> None:
        """Let what came after the last of so many batches, at least one, belong to that."""
        at = len(self._marks)
        while at and self._marks[at - 1][3] >= batches:
            at -= 1
            self._marks[at] = (*self._marks[at][:3], batches - 1, *self._marks[at][4:])

    def marks(self) -> npt.NDArray[np.void]:
        """Return the marks in the order in which they were made: MARK_DTYPE[n]."""
        return np.array(self._marks, dtype=MARK_DTYPE)

    def faults(self) -> FaultTrace:
        """Return the faults that were seen, by time."""
        return concatenate(self._faults)

    def batch_of_faults(self) -> npt.NDArray[np.uint32]:
        """Return the batch of each of :meth:`faults`: uint32[n]."""
        return np.repeat(np.array(self._batches, dtype=np.uint32), [len(part) for part in self._faults])
