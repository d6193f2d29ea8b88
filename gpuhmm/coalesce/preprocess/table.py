"""What becomes of a recorded trace: its batches, sorted and grouped, as columns."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.drivers.uvm.replay import UPDATE_PUT_RATIO, updates_put
from gpuhmm.coalesce.preprocess.rules import Rules

#: Bits of ``flags``: the sorted fault has the page of the one before it; it is the first of its window.
DUPLICATE = 1
NEW_WINDOW = 2

#: The counts of each batch, in the order of the rows of ``counts``.
COUNTS = (
    "raw",
    "coalesced",
    "unique_pages",
    "same_utlb",
    "cross_utlb",
    "windows",
    "most_in_window",
    "counted_duplicates",
)


@dataclass
class BatchTable:
    """Batches of ``batch`` faults each in the order of the trace, the last with what is left.

    Of each raw fault: ``representative``, uint16[n], the index in its batch of the fault that it merged
    into in the end.  Of each representative, batch after batch and sorted within: ``index``, uint16[m], its
    index in the batch; ``instances``, uint32[m], and ``masks``, uint8[m] (bit n: access number n), as the
    driver has them; ``flags``, uint8[m], DUPLICATE and NEW_WINDOW.  ``firsts``, int64[batches + 1], says
    where the representatives of each batch begin.

    ``counts``, uint32[8, batches], has these rows: ``raw`` faults; ``coalesced``, the representatives;
    ``unique_pages``; ``same_utlb`` and ``cross_utlb``, raw faults on a page that their own µTLB, or only
    others, faulted on before in the batch; ``windows`` that any page lies in; ``most_in_window``, the most
    raw faults of one; ``counted_duplicates``, what the driver counts (num_duplicate_faults), which misses
    faults that merged with a filtered one.  ``unique_pages`` + ``same_utlb`` + ``cross_utlb`` is ``raw``.
    """

    rules: Rules
    batch: int
    window: int
    representative: npt.NDArray[np.uint16]
    index: npt.NDArray[np.uint16]
    instances: npt.NDArray[np.uint32]
    masks: npt.NDArray[np.uint8]
    flags: npt.NDArray[np.uint8]
    firsts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self.firsts) - 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BatchTable) and all(
            np.array_equal(getattr(self, part.name), getattr(other, part.name)) for part in fields(self)
        )

    def count(self, name: str) -> npt.NDArray[np.uint32]:
        """Return one row of ``counts``; ValueError for names that are not in COUNTS."""
        if name not in COUNTS:
            raise ValueError(f"a count must be one of {', '.join(COUNTS)} (got {name!r})")
        return self.counts[COUNTS.index(name)]

    def columns(self) -> dict[str, npt.NDArray[np.uint32]]:
        """Return the rows of ``counts`` by name."""
        return dict(zip(COUNTS, self.counts, strict=True))

    def totals(self) -> dict[str, int]:
        """Return the sum of each count over all batches; of ``most_in_window`` the most."""
        return {
            name: int(row.max(initial=0) if name == "most_in_window" else row.sum(dtype=np.uint64))
            for name, row in self.columns().items()
        }

    def batches(self) -> npt.NDArray[np.int64]:
        """Return the number of the batch of each representative: int64[m]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.firsts))

    def rows(self) -> npt.NDArray[np.int64]:
        """Return the row in the trace of each representative: int64[m]."""
        return self.batches() * self.batch + self.index

    def group_firsts(self) -> npt.NDArray[np.int64]:
        """Return where each window of each batch begins among the representatives: int64[groups + 1]."""
        heads = np.flatnonzero(self.flags & NEW_WINDOW)
        return np.append(heads, len(self.flags))

    def updates_put(self, ratio: int = UPDATE_PUT_RATIO) -> npt.NDArray[np.bool_]:
        """Return, per batch, whether UVM's flush after it reads PUT: above ``ratio`` percent duplicates."""
        duplicates, raw = (self.count(name).astype(np.uint64) for name in ("counted_duplicates", "raw"))
        return np.asarray(updates_put(duplicates, raw, ratio))
