"""Ranges larger than memory: the driver loop over bounded pieces, under one notifier sequence."""

from __future__ import annotations

import time
from collections.abc import Callable
from errno import EBUSY
from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.errors import HmmError
from gpuhmm.hmm.backends import hmm_range_fault, resolve_backend
from gpuhmm.hmm.loop import HMM_RANGE_DEFAULT_TIMEOUT_MS, REQUESTS, MirroredRange
from gpuhmm.hmm.ranges import HmmRange, RangeStats

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace
    from gpuhmm.mm.notifier import MmuIntervalNotifier

#: Pieces begin and end at multiples of 1 GiB, so that no entry of a page table is cut in two.
_GRAIN = 1 << 30
#: Memory of the words of one piece, unless something else is asked for.
DEFAULT_MEMORY = 1 << 30


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
    if request not in REQUESTS:
        raise ValueError(f"request must be one of {', '.join(REQUESTS)} (got {request!r})")
    if not timeout_ms > 0:
        raise ValueError(f"timeout_ms must be positive (got {timeout_ms})")
    if memory < _GRAIN >> 9:
        raise ValueError(f"memory must be at least {_GRAIN >> 9} bytes, the words of 1 GiB (got {memory})")
    info = resolve_backend(backend)
    step = (memory << 9) // _GRAIN * _GRAIN
    words = np.empty(min(step, end - start) >> 12, dtype=np.uint64)
    stats = RangeStats()
    notifier = mm.notifier(start, end)

    def walk(seq: int) -> int:
        """Walk all pieces under one sequence; return 0 or -EBUSY."""
        at = start
        while at < end:
            past = min(end, (at + step) // _GRAIN * _GRAIN)
            piece = words[: (past - at) >> 12]
            piece[:] = 0
            ret = _call(notifier, at, past, piece, seq)
            if ret:
                if ret != -EBUSY:
                    raise HmmError.of(ret, at, past)
                return ret
            consume(MirroredRange(at, past, piece, info.name, tries, stats, mm.kernel))
            at = past
            if progress is not None:
                progress((at - start) >> 12, (end - start) >> 12)
        return -EBUSY if notifier.read_retry(seq) else 0

    def _call(notifier: MmuIntervalNotifier, at: int, past: int, piece: np.ndarray, seq: int) -> int:
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
        return hmm_range_fault(range_, backend=info.name)

    tries = 1
    deadline = None
    try:
        while walk(notifier.read_begin()) != 0:
            now = time.monotonic()
            deadline = now + timeout_ms / 1000 if deadline is None else deadline
            if now > deadline:
                raise HmmError.of(-EBUSY, start, end)
            tries += 1
    finally:
        notifier.remove()
    return tries, stats
