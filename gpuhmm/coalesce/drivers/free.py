"""A driver that none is: every rule can be chosen, to see what it does."""

from __future__ import annotations

from dataclasses import dataclass, field
from errno import EBUSY

import numpy as np

from gpuhmm.coalesce.access import ACCESS_REQUESTS
from gpuhmm.coalesce.areas import place_keys
from gpuhmm.coalesce.ranges import RangeRequest, serve_ranges
from gpuhmm.coalesce.service import FaultService
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.hmm.words import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE
from gpuhmm.mm.notifier import MmuIntervalNotifier
from gpuhmm.mm.vma import VM_WRITE, Vma

DUPLICATES = ("page", "none")
REQUESTS = ("access", "vma")
REPLAYS = ("batch", "batch-flush", "once")
LATE = ("cancel", "replay")

_WRITE = int(HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE)


@dataclass(frozen=True)
class FreeSettings:
    """What the free driver does.

    ``batch`` entries are read together, 0 for the whole buffer; ``window`` bytes, aligned, are asked for with
    one call, and with ``whole_window`` every page of it.  ``duplicates``: ``page`` asks once for each page,
    ``none`` serves every fault by itself.  ``request``: what the ``access`` needs, or write wherever the
    ``vma`` may be written.  ``replay``: after each ``batch``, with a flush of the buffer before it
    (``batch-flush``), or ``once`` when the buffer is empty.  A range that was invalidated meanwhile is asked
    for again, at most ``max_tries`` times (0: any number) and for ``timeout_ms``; one that stays stale is
    cancelled or left to fault again after the replay (``late``: ``cancel`` or ``replay``).
    """

    batch: int = 256
    window: int = 1 << 21
    whole_window: bool = False
    duplicates: str = "page"
    request: str = "access"
    replay: str = "batch-flush"
    timeout_ms: int = 1000
    max_tries: int = 0
    late: str = "cancel"

    def __post_init__(self) -> None:
        if self.batch < 0:
            raise ValueError(f"batch must be 0 (the whole buffer) or more (got {self.batch})")
        if self.window < 4096 or self.window & (self.window - 1) or self.window > 1 << 30:
            raise ValueError(f"window must be a power of two from 4K to 1G (got {self.window})")
        for name, known in (
            ("duplicates", DUPLICATES),
            ("request", REQUESTS),
            ("replay", REPLAYS),
            ("late", LATE),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)} (got {getattr(self, name)!r})")
        if self.timeout_ms < 1:
            raise ValueError(f"timeout_ms must be at least 1 (got {self.timeout_ms})")
        if self.max_tries < 0:
            raise ValueError(f"max_tries must be 0 (any number) or more (got {self.max_tries})")


@dataclass
class FreeDriver:
    """Fetch, join faults of a page, group by aligned window, one hmm_range_fault a window, map, replay."""

    settings: FreeSettings = field(default_factory=FreeSettings)
    name: str = "free"
    source: str = "none: the common skeleton of HMM drivers"

    def begin(self, service: FaultService) -> None:
        """Begin a run, without any notifier."""
        self._notifiers: dict[tuple[int, int], MmuIntervalNotifier] = {}

    def serve(self, service: FaultService) -> None:
        """Serve batches until the buffer is empty."""
        service.spend("interrupt")
        put = service.read_put()
        replayed = False
        while service.get < put:
            past = put if not self.settings.batch else min(put, service.get + self.settings.batch)
            entries = service.fetch(past)
            service.begin_batch(entries)
            service.spend("preprocess", len(entries))
            service.spend("batch")
            self._serve_batch(service, entries)
            if self.settings.replay == "batch-flush":
                service.flush(service.read_put())
            if self.settings.replay != "once":
                service.replay()
                replayed = True
            service.end_batch()
            put = service.read_put() if service.get == put or self.settings.replay == "batch-flush" else put
        if not replayed:
            service.replay()

    def _serve_batch(self, service: FaultService, entries: FaultTrace) -> None:
        order = np.lexsort((-entries.access.astype(np.int64), entries.va, entries.space))
        if self.settings.duplicates == "none":
            for index in order:
                self._serve_window(service, entries[np.array([index])])
            return
        shift = self.settings.window.bit_length() - 1
        keys = place_keys(entries.space[order], entries.va[order], shift)
        for group in np.split(order, np.flatnonzero(np.diff(keys)) + 1):
            self._serve_window(service, entries[group])

    def _serve_window(self, service: FaultService, faults: FaultTrace) -> None:
        space, low = int(faults.space[0]), int(faults.va[0]) & -self.settings.window
        past = low + self.settings.window
        for va in dict.fromkeys(faults.va.tolist()):
            if service.vma(space, va) is None:
                service.cancel(space, va)
        # A window ends where its VMA does.
        va = int(faults.va[0])
        while len(faults) and va < past:
            vma = service.vma(space, va)
            inside = faults.va < np.uint64(past if vma is None else vma.end)
            here, faults = faults[inside], faults[~inside]
            if vma is not None:
                start, end = max(low, vma.start), min(past, vma.end)
                self._serve_piece(service, here, space, start, end, vma)
            va = int(faults.va[0]) if len(faults) else past

    def _serve_piece(
        self, service: FaultService, faults: FaultTrace, space: int, start: int, end: int, vma: Vma
    ) -> None:
        places = ((faults.va - np.uint64(start)) >> np.uint64(12)).astype(np.int64)
        words = np.zeros((end - start) >> 12, dtype=np.uint64)
        np.bitwise_or.at(words, places, ACCESS_REQUESTS[faults.access])
        asked = words != 0
        if self.settings.request == "vma":
            words[asked] = _WRITE if vma.flags & VM_WRITE else int(HMM_PFN_REQ_FAULT)
        if self.settings.whole_window:
            words[:] = np.bitwise_or.reduce(words)
        if vma.is_hugetlb:
            # hmm_range_fault() looks only at the request of the first page that it walks of each huge one.
            firsts = np.arange(start, end, 1 << 12) >> vma.page_shift
            edges = np.flatnonzero(np.diff(firsts, prepend=-1))
            words[edges] = np.bitwise_or.reduceat(words, edges)
        request = RangeRequest(
            space,
            start,
            end,
            self._notifier(service, space, start),
            asked,
            words,
            map_pages=None if self.settings.whole_window else asked,
        )
        (ret,) = serve_ranges(
            service,
            [request],
            timeout_ns=self.settings.timeout_ms * 1_000_000,
            max_tries=self.settings.max_tries or None,
        )
        if ret and not (ret == -EBUSY and self.settings.late == "replay"):
            for place in np.flatnonzero(asked):
                service.cancel(space, start + (int(place) << 12))

    def _notifier(self, service: FaultService, space: int, va: int) -> MmuIntervalNotifier:
        low = va & -self.settings.window
        if (space, low) not in self._notifiers:
            self._notifiers[space, low] = service.notifier(space, low, low + self.settings.window)
        return self._notifiers[space, low]
