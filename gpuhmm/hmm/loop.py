"""The driver loop around ``hmm_range_fault()``: one range, the runs of one, or a range in pieces.

Source: Documentation/mm/hmm.rst, include/linux/hmm.h:HMM_RANGE_DEFAULT_TIMEOUT (v5.18).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from errno import EBUSY
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from gpuhmm.errors import HmmError
from gpuhmm.hmm.backends import BackendInfo, resolve_backend, walk_range, walk_runs
from gpuhmm.hmm.mirrored import MirroredRange, MirroredRuns
from gpuhmm.hmm.ranges import HmmRange, RangeStats
from gpuhmm.hmm.runs import HmmRuns, Runs
from gpuhmm.hmm.words import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE
from gpuhmm.mm.notifier import MmuIntervalNotifier
from gpuhmm.shared import COMPILING

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

T = TypeVar("T")

HMM_RANGE_DEFAULT_TIMEOUT_MS = 1000

REQUESTS = {
    "none": 0,
    "read": int(HMM_PFN_REQ_FAULT),
    "write": int(HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE),
}

#: Pieces begin and end at multiples of 1 GiB, so that no entry of a page table is cut in two.
_GRAIN = 1 << 30
#: Memory of the words of one piece, unless something else is asked for.
DEFAULT_MEMORY = 1 << 30


def tries(notifier: MmuIntervalNotifier, timeout_ms: float) -> Iterator[int]:
    """Yield a fresh sequence number of ``notifier`` for each try, until the time is up.

    The time is that after the first try, so that there are at least two, and what is compiled meanwhile
    does not count: Linux's driver loop need not wait for a compiler.
    """
    yield notifier.read_begin()
    until = _now() + timeout_ms / 1000
    while True:
        yield notifier.read_begin()
        if _now() > until:
            return


def _now() -> float:
    return time.monotonic() - COMPILING.seconds


def range_fault(
    mm: AddressSpace,
    start: int,
    end: int,
    *,
    request: str = "none",
    requests: npt.NDArray[np.uint64] | None = None,
    dev_private_owner: int = 0,
    timeout_ms: float = HMM_RANGE_DEFAULT_TIMEOUT_MS,
    backend: str = "auto",
) -> MirroredRange:
    """Return what a device may map of ``[start, end)`` bytes of ``mm``, faulting in what is asked for.

    ``request`` is for every page: ``none`` (a snapshot), ``read`` or ``write``; ``requests``,
    uint64[npages] of HMM_PFN_REQ_* bits, adds to it page by page and is left as it is.  The range
    is walked again from its inputs as long as it is invalidated meanwhile.  HmmTimeoutError after
    ``timeout_ms`` of that, counted from the first invalidation on; HmmFaultError and HmmPermissionError
    for pages that cannot be had.
    """
    info = _checked(request, timeout_ms, backend)
    stats = RangeStats()
    notifier = mm.notifier(start, end)

    def ask(seq: int, _: int) -> tuple[int, npt.NDArray[np.uint64]]:
        words = np.zeros((end - start) >> 12, dtype=np.uint64) if requests is None else requests.copy()
        range_ = HmmRange(
            notifier,
            start,
            end,
            words,
            notifier_seq=seq,
            default_flags=REQUESTS[request],
            pfn_flags_mask=0 if requests is None else REQUESTS["write"],
            dev_private_owner=dev_private_owner,
            stats=stats,
        )
        return walk_range(range_, info), words

    words, tried = _until_valid(notifier, start, end, timeout_ms, ask)
    return MirroredRange(start, end, words, info.name, tried, stats, mm.kernel)


def range_runs(
    mm: AddressSpace,
    start: int,
    end: int,
    *,
    request: str = "none",
    dev_private_owner: int = 0,
    timeout_ms: float = HMM_RANGE_DEFAULT_TIMEOUT_MS,
    backend: str = "auto",
) -> MirroredRuns:
    """Return the runs of ``[start, end)`` bytes of ``mm``: :func:`range_fault` for ranges of any size.

    A whole address space is one call, and a hole costs nothing.
    """
    info = _checked(request, timeout_ms, backend)
    stats = RangeStats()
    notifier = mm.notifier(start, end)

    def ask(seq: int, _: int) -> tuple[int, Runs]:
        wanted = HmmRuns(
            notifier,
            start,
            end,
            notifier_seq=seq,
            default_flags=REQUESTS[request],
            dev_private_owner=dev_private_owner,
            stats=stats,
        )
        return walk_runs(wanted, info), wanted.runs

    runs, tried = _until_valid(notifier, start, end, timeout_ms, ask)
    return MirroredRuns(start, end, runs, info.name, tried, stats, mm.kernel)


def range_fault_pieces(
    mm: AddressSpace,
    start: int,
    end: int,
    consume: Callable[[MirroredRange], object],
    *,
    request: str = "none",
    memory: int = DEFAULT_MEMORY,
    dev_private_owner: int = 0,
    timeout_ms: float = HMM_RANGE_DEFAULT_TIMEOUT_MS,
    backend: str = "auto",
    progress: Callable[[int, int], object] | None = None,
) -> tuple[int, RangeStats]:
    """Hand what a device may map of ``[start, end)`` to ``consume``, piece by piece; return tries and counts.

    All pieces are valid together: one notifier sequence spans them.  If the range is invalidated
    meanwhile, everything begins again with the first piece, and what ``consume`` got before is void;
    HmmTimeoutError after ``timeout_ms`` of that, counted from the first invalidation on.  The words of a
    piece take at most ``memory`` bytes (at least those of 1 GiB of addresses, 2 MiB) and are overwritten
    by the next.  Each piece is one call, as of a driver that walks in chunks: a fault
    reaches to the end of its piece at most.  ``progress`` is called with the pages done and in all.
    HmmFaultError and HmmPermissionError as :func:`gpuhmm.range_fault`.
    """
    info = _checked(request, timeout_ms, backend)
    if memory < _GRAIN >> 9:
        raise ValueError(f"memory must be at least {_GRAIN >> 9} bytes, the words of 1 GiB (got {memory})")
    step = (memory << 9) // _GRAIN * _GRAIN
    words = np.empty(min(step, end - start) >> 12, dtype=np.uint64)
    stats = RangeStats()
    notifier = mm.notifier(start, end)

    def walk(seq: int, tried: int) -> int:
        """Walk all pieces under one sequence; return 0 or -EBUSY."""
        at = start
        while at < end:
            past = min(end, (at + step) // _GRAIN * _GRAIN)
            piece = words[: (past - at) >> 12]
            piece[:] = 0
            range_ = HmmRange(
                notifier,
                at,
                past,
                piece,
                notifier_seq=seq,
                default_flags=REQUESTS[request],
                dev_private_owner=dev_private_owner,
                stats=stats,
            )
            ret = walk_range(range_, info)
            if ret == -EBUSY:
                return ret
            if ret:
                raise HmmError.of(ret, at, past)
            consume(MirroredRange(at, past, piece, info.name, tried, stats, mm.kernel))
            at = past
            if progress is not None:
                progress((at - start) >> 12, (end - start) >> 12)
        return 0

    _, tried = _until_valid(notifier, start, end, timeout_ms, lambda seq, tried: (walk(seq, tried), None))
    return tried, stats


def _checked(request: str, timeout_ms: float, backend: str) -> BackendInfo:
    if request not in REQUESTS:
        raise ValueError(f"request must be one of {', '.join(REQUESTS)} (got {request!r})")
    if not timeout_ms > 0:
        raise ValueError(f"timeout_ms must be positive (got {timeout_ms})")
    return resolve_backend(backend)


def _until_valid(
    notifier: MmuIntervalNotifier,
    start: int,
    end: int,
    timeout_ms: float,
    ask: Callable[[int, int], tuple[int, T]],
) -> tuple[T, int]:
    """Ask, with a sequence and how often was asked, until an answer was not invalidated meanwhile.

    Return it and how often was asked; the notifier is removed.
    """
    try:
        for tried, seq in enumerate(tries(notifier, timeout_ms), 1):
            ret, answer = ask(seq, tried)
            if ret == 0 and not notifier.read_retry(seq):
                return answer, tried
            if ret not in (0, -EBUSY):
                raise HmmError.of(ret, start, end)
        raise HmmError.of(-EBUSY, start, end)
    finally:
        notifier.remove()
