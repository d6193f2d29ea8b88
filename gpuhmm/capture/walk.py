"""The walk of a capture: ``hmm_range_fault()`` over everything that was read, as runs.

A snapshot is one call for the whole range, gaps between mappings included.  A request is one call for
each mapping, so that one that cannot be faulted does not end the others.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from errno import EBUSY, errorcode
from typing import NamedTuple

import numpy as np

from gpuhmm.capture.record import Capture
from gpuhmm.hmm.backends import BackendInfo, resolve_backend, walk_runs
from gpuhmm.hmm.loop import REQUESTS, tries
from gpuhmm.hmm.ranges import RangeStats
from gpuhmm.hmm.runs import HmmRuns, Runs, clip_runs
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.vma import VM_READ, VM_WRITE

#: The most pages that a request may walk, 256 GiB: every hole among them costs a fault.
MAX_REQUEST_PAGES = 1 << 26


@dataclass(frozen=True)
class WalkedMapping:
    """What one mapping's walk gave.

    ``runs`` is ``gpuhmm.hmm.runs.RUN_DTYPE``[n] over all its pages.  ``error`` is the name of the errno that
    a request ended with; the runs are then those of a snapshot after it.
    """

    runs: Runs
    faults: int
    error: str | None


@dataclass(frozen=True)
class CaptureWalk:
    """All mappings of a capture, walked; ``seconds`` holds the walk alone, ``pages`` are of 4 KiB."""

    request: str
    backend: BackendInfo
    pages: int
    calls: int
    seconds: float
    prepare_seconds: float
    mappings: list[WalkedMapping]


@dataclass(frozen=True)
class PreparedBackend:
    """A back end that was compiled and ran once, and the seconds that this took."""

    info: BackendInfo
    seconds: float


def prepare(backend: str) -> PreparedBackend:
    """Return the back end after it was compiled and ran once, on a space of its own."""
    begun = time.perf_counter()
    info = resolve_backend(backend)
    npages = 64 if info.name == "reference" else 8192
    mm = AddressSpace()
    mm.mmap(1 << 30, (1 << 30) + (npages << 12), VM_READ | VM_WRITE)
    mm.map_pfns(1 << 30, np.arange(1, npages, dtype=np.uint64))
    for request, pages in (("none", npages), ("none", 1), ("read", npages), ("read", npages)):
        assert _call(mm, 1 << 30, (1 << 30) + (pages << 12), request, info).ret == 0
    return PreparedBackend(info, time.perf_counter() - begun)


def walk_capture(
    capture: Capture, *, request: str = "none", backend: str | PreparedBackend = "auto"
) -> CaptureWalk:
    """Walk everything that was captured and return the runs of each mapping.

    ``request`` is ``none``, ``read`` or ``write``, for every page; what it faults changes
    ``capture.space`` and nothing else.  ``backend`` is a name, or one that is prepared already.
    ValueError for a request over more than MAX_REQUEST_PAGES.
    """
    if request not in REQUESTS:
        raise ValueError(f"request must be one of {', '.join(REQUESTS)} (got {request!r})")
    if request != "none":
        _check_size(capture)
    ready = prepare(backend) if isinstance(backend, str) else backend
    pages, calls, seconds, mappings = (_snapshot if request == "none" else _requests)(
        capture, request, ready.info
    )
    return CaptureWalk(request, ready.info, pages, calls, seconds, ready.seconds, mappings)


def _check_size(capture: Capture) -> None:
    pages = sum(mapping.npages for mapping in capture.mappings if not mapping.rejected)
    if pages > MAX_REQUEST_PAGES:
        raise ValueError(
            f"a request faults every hole, and the mappings have {pages} pages, more than "
            f"{MAX_REQUEST_PAGES}: choose a part with --start and --end"
        )


#: Pages walked, calls, seconds of the calls, and what each mapping got.
_Walked = tuple[int, int, float, list[WalkedMapping]]


def _snapshot(capture: Capture, request: str, info: BackendInfo) -> _Walked:
    """Walk the whole range in one call; the pages that count are those of windows that hold anything."""
    call = _call(capture.space, capture.start, capture.end, request, info)
    walked = [
        WalkedMapping(clip_runs(call.runs, mapping.start, mapping.end), 0, None)
        for mapping in capture.mappings
    ]
    firsts = np.maximum(capture.windows << 21, capture.start)
    pasts = np.minimum((capture.windows + 1) << 21, capture.end)
    return int(np.maximum(pasts - firsts, 0).sum()) >> 12, 1, call.seconds, walked


def _requests(capture: Capture, request: str, info: BackendInfo) -> _Walked:
    """Walk each mapping from end to end."""
    pages = 0
    seconds = 0.0
    walked = []
    for mapping in capture.mappings:
        call = _call(capture.space, mapping.start, mapping.end, request, info)
        seconds += call.seconds
        runs, error = call.runs, None
        if call.ret:
            runs = _call(capture.space, mapping.start, mapping.end, "none", info).runs
            error = errorcode.get(-call.ret, str(-call.ret))
        else:
            pages += mapping.npages
        walked.append(WalkedMapping(runs, call.stats.faults, error))
    return pages, len(walked), seconds, walked


class _Call(NamedTuple):
    """What one ``hmm_range_fault()`` returned, left and did, and how long it took."""

    ret: int
    runs: Runs
    stats: RangeStats
    seconds: float


def _call(mm: AddressSpace, start: int, end: int, request: str, info: BackendInfo) -> _Call:
    begun = time.perf_counter()
    notifier = mm.notifier(start, end)
    stats = RangeStats()
    try:
        for seq in tries(notifier, math.inf):
            wanted = HmmRuns(
                notifier,
                start,
                end,
                notifier_seq=seq,
                default_flags=REQUESTS[request],
                stats=stats,
            )
            ret = walk_runs(wanted, info)
            if ret != -EBUSY:
                break
        return _Call(ret, wanted.runs, stats, time.perf_counter() - begun)
    finally:
        notifier.remove()
