"""The walk of a captured process: ``hmm_range_fault()`` over everything that was read.

A snapshot walks the populated windows, each run of neighbours in one call: no other page can be
anything but a hole, or ERROR where the walk rejects the mapping.  A request walks each mapping from end
to end, because every hole is faulted, in the copy.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from errno import errorcode

import numpy as np
import numpy.typing as npt

from gpuhmm.backends import BackendInfo, hmm_range_fault, resolve_backend
from gpuhmm.driver import REQUESTS
from gpuhmm.process.capture import ProcessCapture
from gpuhmm.process.maps import Mapping
from gpuhmm.process.windows import flat_slices, runs_of
from gpuhmm.ranges import HmmRange, RangeStats
from gpuhmm.space import AddressSpace
from gpuhmm.tables import Words
from gpuhmm.vma import VM_READ, VM_WRITE

#: The most pages that a request may walk, 256 GiB: every hole among them costs a fault.
MAX_REQUEST_PAGES = 1 << 26

_WINDOW = 1 << 21


@dataclass(frozen=True)
class WalkedMapping:
    """What one mapping's walk gave.

    ``hmm_pfns`` is uint64[n], the words of its populated windows, or of all pages after a request.
    ``cuts`` are positions in it, int64, before which addresses leave something out.  ``error`` is the
    name of the errno that a request ended with; the words are then those of a snapshot after it.
    """

    hmm_pfns: Words
    cuts: npt.NDArray[np.int64]
    faults: int
    error: str | None


@dataclass(frozen=True)
class ProcessWalk:
    """All mappings of a capture, walked; ``seconds`` holds the walk alone, ``pages`` are of 4 KiB."""

    request: str
    backend: BackendInfo
    pages: int
    calls: int
    seconds: float
    prepare_seconds: float
    mappings: list[WalkedMapping]


def prepare(backend: str) -> BackendInfo:
    """Return the back end after it was compiled and ran once, on a space of its own."""
    info = resolve_backend(backend)
    npages = 64 if info.name == "reference" else 8192
    mm = AddressSpace()
    mm.mmap(1 << 30, (1 << 30) + (npages << 12), VM_READ | VM_WRITE)
    mm.map_pfns(1 << 30, np.arange(1, npages, dtype=np.uint64))
    for request, pages in (("none", npages), ("none", 1), ("read", npages), ("read", npages)):
        ret, _, _ = _call(mm, 1 << 30, (1 << 30) + (pages << 12), request, info.name)
        assert ret == 0
    return info


def walk_process(capture: ProcessCapture, *, request: str = "none", backend: str = "auto") -> ProcessWalk:
    """Walk everything that was captured and return the words of each mapping.

    ``request`` is ``none``, ``read`` or ``write``, for every page; what it faults changes
    ``capture.space`` and nothing else.  ValueError for a request over more than MAX_REQUEST_PAGES.
    """
    if request not in REQUESTS:
        raise ValueError(f"request must be one of {', '.join(REQUESTS)} (got {request!r})")
    if request != "none":
        _check_size(capture)
    begun = time.perf_counter()
    info = prepare(backend)
    prepared = time.perf_counter() - begun
    walk = _snapshot if request == "none" else _requests
    begun = time.perf_counter()
    pages, calls, mappings = walk(capture, request, info.name)
    seconds = time.perf_counter() - begun
    return ProcessWalk(request, info, pages, calls, seconds, prepared, mappings)


def _check_size(capture: ProcessCapture) -> None:
    pages = sum(mapping.npages for mapping in capture.mappings if not mapping.rejected)
    if pages > MAX_REQUEST_PAGES:
        raise ValueError(
            f"a request faults every hole, and the mappings have {pages} pages, more than "
            f"{MAX_REQUEST_PAGES}: choose a part with --start and --end"
        )


def _snapshot(capture: ProcessCapture, request: str, backend: str) -> tuple[int, int, list[WalkedMapping]]:
    """Walk each run of windows in one call; words outside the range that was asked for stay 0."""
    windows = capture.windows
    words = np.zeros(len(windows) * 512, dtype=np.uint64)
    pages = calls = 0
    cuts = []
    for first, past in runs_of(windows):
        base = int(windows[first]) * _WINDOW
        start = max(base, capture.start)
        end = min(base + (past - first) * _WINDOW, capture.end)
        cuts.append(first * 512)
        if start >= end:
            continue
        at = first * 512 + (start - base >> 12)
        out = words[at : at + (end - start >> 12)]
        _call(capture.space, start, end, request, backend, out)
        pages += len(out)
        calls += 1
    bounds = np.array([(m.start, m.end) for m in capture.mappings], dtype=np.int64)
    slices = zip(*flat_slices(windows, bounds[:, 0], bounds[:, 1]), strict=True)
    breaks = np.array(cuts, dtype=np.int64)
    walked = []
    for low, high in slices:
        inside = breaks[np.searchsorted(breaks, low, "right") : np.searchsorted(breaks, high)] - low
        walked.append(WalkedMapping(words[low:high], inside, 0, None))
    return pages, calls, walked


def _requests(capture: ProcessCapture, request: str, backend: str) -> tuple[int, int, list[WalkedMapping]]:
    """Walk each mapping from end to end; of one that is rejected the first pages tell the errno."""
    pages = calls = 0
    walked = []
    none = np.empty(0, dtype=np.int64)
    for mapping in capture.mappings:
        end = _asked_end(mapping)
        ret, words, stats = _call(capture.space, mapping.start, end, request, backend)
        calls += 1
        pages += len(words)
        if ret:
            _, words, _ = _call(capture.space, mapping.start, end, "none", backend)
        error = errorcode.get(-ret, str(-ret)) if ret else None
        walked.append(WalkedMapping(words, none, stats.faults, error))
    return pages, calls, walked


def _asked_end(mapping: Mapping) -> int:
    return min(mapping.end, mapping.start + _WINDOW) if mapping.rejected else mapping.end


def _call(
    mm: AddressSpace, start: int, end: int, request: str, backend: str, out: Words | None = None
) -> tuple[int, Words, RangeStats]:
    """One ``hmm_range_fault()``: return what it returned, the words, and what it did."""
    words = np.zeros((end - start) >> 12, dtype=np.uint64) if out is None else out
    notifier = mm.notifier(start, end)
    stats = RangeStats()
    try:
        while True:
            range_ = HmmRange(
                notifier,
                start,
                end,
                words,
                notifier_seq=notifier.read_begin(),
                default_flags=REQUESTS[request],
                stats=stats,
            )
            ret = hmm_range_fault(range_, backend=backend)
            if errorcode.get(-ret) != "EBUSY":
                return ret, words, stats
    finally:
        notifier.remove()
