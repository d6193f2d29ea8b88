"""Ranges that a driver asks HMM for, with the loop around -EBUSY, and what it maps of them.

Source: Documentation/mm/hmm.rst, the driver's loop (v6.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from errno import EBUSY
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.areas import DPT_CANCELLED
from gpuhmm.hmm.batch import hmm_range_fault_batch
from gpuhmm.hmm.ranges import HmmRange, RangeStats
from gpuhmm.hmm.words import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE, HMM_PFN_VALID, HMM_PFN_WRITE, word_layout
from gpuhmm.mirror.page_table import DPT_VALID, DPT_WRITE
from gpuhmm.mm.notifier import MmuIntervalNotifier
from gpuhmm.mm.tables import Words

if TYPE_CHECKING:
    from gpuhmm.coalesce.service import FaultService
    from gpuhmm.coalesce.trace import FaultTrace

_REQUEST_BITS = int(HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE)


@dataclass
class RangeRequest:
    """``[start, end)`` bytes of a space that a driver wants to map.

    ``notifier`` covers it (:meth:`FaultService.notifier`).  ``hmm_pfns``, uint64[npages], holds the
    HMM_PFN_REQ_* bits of each page, or ``default_flags`` those of all.  ``asked``, bool[npages], are the
    pages that faults named.  ``map_pages``, bool[npages], are the pages to be mapped, all by default;
    ``read_only`` maps them without write permission.
    """

    space: int
    start: int
    end: int
    notifier: MmuIntervalNotifier
    asked: npt.NDArray[np.bool_]
    hmm_pfns: Words | None = None
    default_flags: int = 0
    map_pages: npt.NDArray[np.bool_] | None = None
    read_only: bool = False
    #: The sequence to walk under; by default every call reads it anew.
    notifier_seq: int | None = None
    #: What came of it: 0 or a negative errno, and the words.
    ret: int = 0
    words: Words = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    tries: int = 0

    @property
    def npages(self) -> int:
        """Pages of 4 KiB in the range."""
        return (self.end - self.start) >> 12


def serve_ranges(
    service: FaultService,
    requests: Sequence[RangeRequest],
    *,
    timeout_ns: int | None = 1_000_000_000,
    max_tries: int | None = None,
    map_answers: bool = True,
) -> list[int]:
    """Ask for each range until its answer is not stale, map it, and return what came: 0 or a negative errno.

    Every range gets the documented loop: ``read_begin``, ``hmm_range_fault``, ``read_retry``, and again while
    it is stale, for at most ``timeout_ns`` of the model's time (None: without end) and ``max_tries`` calls;
    -EBUSY after that.  Ranges with notifiers of their own go through ``hmm_range_fault_batch`` together;
    where one notifier serves several, or the CPU works meanwhile, one after the other, as the driver would.
    """
    deadline = None if timeout_ns is None else service.clock + timeout_ns
    waiting = list(requests)
    while waiting:
        now, rest = _round(waiting, alone=service.cpu is not None)
        stale = ask_ranges(service, now, map_answers=map_answers)
        again = []
        for request in stale:
            late = deadline is not None and service.clock > deadline
            if late or (max_tries is not None and request.tries >= max_tries):
                request.ret = -EBUSY
            else:
                again.append(request)
        waiting = again + rest
    return [request.ret for request in requests]


def _round(waiting: list[RangeRequest], alone: bool) -> tuple[list[RangeRequest], list[RangeRequest]]:
    """Return the first ranges that may be asked for at once, and the others."""
    count = 1
    if not alone:
        seen = {id(waiting[0].notifier)}
        for request in waiting[1:]:
            if id(request.notifier) in seen:
                break
            seen.add(id(request.notifier))
            count += 1
    return waiting[:count], waiting[count:]


def ask_ranges(
    service: FaultService,
    requests: list[RangeRequest],
    *,
    map_answers: bool = True,
    read_retry: bool = True,
) -> list[RangeRequest]:
    """Call for each range once, map what may be mapped, and return those that were stale.

    Their ``ret`` is -EBUSY where the call said so, and 0 where ``read_retry`` did; without ``read_retry`` the
    second is not asked.  The ranges have notifiers of their own.
    """
    began, batch, stats = service.clock, service.batch, RangeStats()
    ranges = [_range_of(request, stats) for request in requests]
    service.run_cpu()
    rets = hmm_range_fault_batch(ranges, backend=service.backend)
    batch.hmm_calls += len(ranges)
    batch.walks += stats.walks
    batch.handle_mm_faults += stats.faults
    service.spend("block", len(ranges))
    service.spend("walk", sum(range_.npages for range_ in ranges))
    service.spend("fault", stats.faults)
    service.run_cpu()
    stale = []
    for request, range_, ret in zip(requests, ranges, rets, strict=True):
        request.ret, request.words = ret, range_.hmm_pfns
        request.tries += 1
        if ret == -EBUSY:
            batch.ebusy += 1
            stale.append(request)
        elif ret == 0 and read_retry and request.notifier.read_retry(range_.notifier_seq):
            batch.read_retries += 1
            stale.append(request)
        elif ret == 0 and map_answers:
            map_pages(service, request)
    at = len(service.batches)
    for request in requests:
        kind = "retry" if request in stale else "service"
        service.timeline.mark(
            kind, began, service.clock, at, request.space, request.start, request.end, request.npages
        )
    return stale


def asked_pages(faults: FaultTrace, space: int, start: int, end: int) -> npt.NDArray[np.bool_]:
    """Return which pages of ``[start, end)`` of a space the faults name: bool[npages]."""
    here = (faults.space == space) & (faults.va >= np.uint64(start)) & (faults.va < np.uint64(end))
    asked = np.zeros((end - start) >> 12, dtype=np.bool_)
    asked[((faults.va[here] - np.uint64(start)) >> np.uint64(12)).astype(np.int64)] = True
    return asked


def _range_of(request: RangeRequest, stats: RangeStats) -> HmmRange:
    words = np.zeros(request.npages, dtype=np.uint64) if request.hmm_pfns is None else request.hmm_pfns.copy()
    seq = request.notifier.read_begin() if request.notifier_seq is None else request.notifier_seq
    return HmmRange(
        request.notifier,
        request.start,
        request.end,
        words,
        notifier_seq=seq,
        default_flags=request.default_flags,
        pfn_flags_mask=0 if request.hmm_pfns is None else _REQUEST_BITS,
        stats=stats,
    )


def map_pages(service: FaultService, request: RangeRequest) -> int:
    """Put the answer of a range into the device page table; return how many pages that were.

    Pages without HMM_PFN_VALID stay as they are, and so do those whose faults were cancelled and what lies
    outside of the device's areas.
    """
    words, batch = request.words, service.batch
    valid = (words & HMM_PFN_VALID) != 0
    if request.map_pages is not None:
        valid &= request.map_pages
    writable = (words & HMM_PFN_WRITE) != 0
    if request.read_only:
        writable = np.zeros_like(writable)
    pfns = words & word_layout(request.notifier.mm.kernel).pfn
    made = pfns | DPT_VALID | np.where(writable, DPT_WRITE, np.uint64(0))
    mapped = changed = 0
    for low, first, past in service.areas.pieces(request.space, request.start, request.end):
        here = slice((low - request.start) >> 12, ((low - request.start) >> 12) + past - first)
        entries = service.areas.entries[first:past]
        put = valid[here] & ((entries & DPT_CANCELLED) == 0)
        changed += int(np.count_nonzero(entries[put] != made[here][put]))
        entries[put] = made[here][put]
        count = int(np.count_nonzero(put))
        mapped += count
        batch.pages_unasked += count - int(np.count_nonzero(put & request.asked[here]))
    batch.pages_asked += int(np.count_nonzero(request.asked))
    batch.pages_mapped += mapped
    service.spend("page", changed)
    return mapped
