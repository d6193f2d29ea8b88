"""Many ranges in one call: what a driver makes of the faults that it has coalesced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from errno import EBUSY, EINVAL
from itertools import groupby
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gpuhmm.errors import ArrayTypeError
from gpuhmm.hmm.backends import BackendInfo, backend_module, resolve_backend, walk_range
from gpuhmm.hmm.ranges import HmmRange, RangeStats, check_fields
from gpuhmm.mm.arguments import check_array
from gpuhmm.mm.notifier import MmuIntervalNotifier
from gpuhmm.mm.tables import Words

#: Ranges that are looked at together after one that stopped; doubled whenever none did.
FIRST_WINDOW = 16


@dataclass
class HmmRangeBatch:
    """Many ``struct hmm_range`` with one notifier and one request, as columns.

    ``starts`` and ``ends`` are uint64[n] in bytes, page aligned.  ``hmm_pfns`` is uint64[pages of all],
    the words of one range after those of the other, written in place.  ValueError as for
    :class:`gpuhmm.HmmRange`.
    """

    notifier: MmuIntervalNotifier
    starts: Words
    ends: Words
    hmm_pfns: Words
    notifier_seq: int = 0
    default_flags: int = 0
    pfn_flags_mask: int = 0
    dev_private_owner: int = 0
    stats: RangeStats = field(default_factory=RangeStats)
    #: int64[n + 1]: where the words of each range begin.
    offsets: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.check()

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> HmmRange:
        """Return one range; its words are a view, its counts those of the batch."""
        return HmmRange(
            self.notifier,
            int(self.starts[index]),
            int(self.ends[index]),
            self.hmm_pfns[self.offsets[index] : self.offsets[index + 1]],
            notifier_seq=self.notifier_seq,
            default_flags=self.default_flags,
            pfn_flags_mask=self.pfn_flags_mask,
            dev_private_owner=self.dev_private_owner,
            stats=self.stats,
        )

    @property
    def start(self) -> int:
        """The lowest address of any range."""
        return int(self.starts.min(initial=0xFFFF_FFFF_FFFF_F000)) if len(self.starts) else 0

    @property
    def end(self) -> int:
        """The end of the highest range."""
        return int(self.ends.max(initial=0))

    def check(self) -> None:
        """Raise unless every column may be used; called again by ``hmm_range_fault_batch()``."""
        check_array("starts", self.starts, (None,))
        check_array("ends", self.ends, (len(self.starts),))
        if (self.starts > self.ends).any():
            i = int(np.flatnonzero(self.starts > self.ends)[0])
            raise ValueError(
                f"start of range {i} must not lie above its end (got {self.starts[i]:#x}, {self.ends[i]:#x})"
            )
        unaligned = (self.starts | self.ends) & np.uint64(4095) != 0
        if unaligned.any():
            i = int(np.flatnonzero(unaligned)[0])
            raise ValueError(
                f"start and end of range {i} must be page aligned "
                f"(got {self.starts[i]:#x}, {self.ends[i]:#x})"
            )
        check_fields(self)
        npages = ((self.ends - self.starts) >> np.uint64(12)).astype(np.int64)
        self.offsets = np.concatenate(([0], np.cumsum(npages)))
        check_array("hmm_pfns", self.hmm_pfns, (int(self.offsets[-1]),))
        if not self.hmm_pfns.flags.writeable:
            raise ValueError("hmm_pfns must be writable (got a read-only array)")


class BatchResolver(Protocol):
    """What a batch back end does for many ranges."""

    def resolve(self, first: int, past: int) -> int:
        """Write the words of ranges ``first`` up to the first that stops; return which, or ``past``."""
        ...


def hmm_range_fault_batch(ranges: Sequence[HmmRange] | HmmRangeBatch, backend: str = "auto") -> list[int]:
    """Return what ``hmm_range_fault()`` returns for each range, called in the order of the list.

    The result is that of the calls one after the other, page tables and stale notifiers included;
    ranges that need no fault are resolved together.  A list may mix spaces, notifiers and requests;
    neighbours of one space with the same request go together.  A :class:`HmmRangeBatch` spares what
    Python costs for each range.  ValueError and TypeError for bad ranges, before anything is changed.
    """
    info = resolve_backend(backend)
    if isinstance(ranges, HmmRangeBatch):
        ranges.check()
        return _Batch(ranges, info).run()
    for range_ in ranges:
        range_.check()
        if range_.on_device:
            raise ArrayTypeError("hmm_pfns of a batch must be a numpy array (got a device array)")
    rets: list[int] = []
    for _, group in groupby(ranges, _what_is_asked):
        rets += _gathered(list(group), info)
    return rets


def _what_is_asked(range_: HmmRange) -> tuple[int, int, int, int]:
    mm = range_.notifier.mm
    return id(mm), range_.default_flags, range_.pfn_flags_mask, range_.dev_private_owner


def _gathered(ranges: list[HmmRange], info: BackendInfo) -> list[int]:
    """Run ranges of one space and one request over a copy of their words."""
    if len(ranges) == 1:
        return [walk_range(ranges[0], info)]
    first = ranges[0]
    batch = HmmRangeBatch(
        first.notifier,
        np.array([range_.start for range_ in ranges], dtype=np.uint64),
        np.array([range_.end for range_ in ranges], dtype=np.uint64),
        np.concatenate([range_.hmm_pfns for range_ in ranges]),
        first.notifier_seq,
        first.default_flags,
        first.pfn_flags_mask,
        first.dev_private_owner,
    )
    return _Batch(batch, info, ranges).run()


class _Batch:
    def __init__(self, batch: HmmRangeBatch, info: BackendInfo, ranges: list[HmmRange] | None = None) -> None:
        self.batch = batch
        self.info = info
        self.ranges = ranges
        self.resolver: BatchResolver = backend_module(info, suffix="_batch").batch_resolver(batch)

    def run(self) -> list[int]:
        count = len(self.batch)
        rets = np.zeros(count, dtype=np.int64)
        rets[self.batch.starts == self.batch.ends] = -EINVAL
        at, window = 0, count
        while at < count:
            # A walk asks the notifier and reads the tables under one hold.
            with self.batch.notifier.mm.mmap_lock.read():
                past = self.fresh_until(at, min(count, at + window))
                stop = self.resolver.resolve(at, past) if past > at else at
            if past == at:
                rets[at] = -EBUSY
                self.done(at, at + 1)
                at += 1
                continue
            self.done(at, stop, written=True)
            at = stop
            window = 2 * window
            if stop < past:
                rets[stop] = walk_range(self.range_at(stop), self.info)
                at, window = stop + 1, FIRST_WINDOW
        return rets.tolist()

    def fresh_until(self, at: int, past: int) -> int:
        """Return the first range from ``at`` on whose notifier is stale, or ``past``."""
        if self.ranges is None:
            batch = self.batch
            return at if batch.notifier.check_retry(batch.notifier_seq) else past
        for i in range(at, past):
            if self.ranges[i].notifier.check_retry(self.ranges[i].notifier_seq):
                return i
        return past

    def range_at(self, index: int) -> HmmRange:
        return self.batch[index] if self.ranges is None else self.ranges[index]

    def done(self, first: int, past: int, written: bool = False) -> None:
        """Count the one walk of each range, and put gathered words back where they came from."""
        if self.ranges is None:
            self.batch.stats.walks += past - first
            if self.batch.stats.trace is not None and written:
                bounds = zip(self.batch.starts[first:past], self.batch.ends[first:past], strict=True)
                for start, end in bounds:
                    self.batch.stats.begin_walk(int(start), int(end))
            return
        offsets = self.batch.offsets
        for i in range(first, past):
            self.ranges[i].stats.walks += 1
            if written:
                self.ranges[i].stats.begin_walk(self.ranges[i].start, self.ranges[i].end)
            if written:
                self.ranges[i].hmm_pfns[:] = self.batch.hmm_pfns[offsets[i] : offsets[i + 1]]
