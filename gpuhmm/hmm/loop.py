"""What a Python user calls: the driver loop around ``hmm_range_fault()``.

Source: Documentation/mm/hmm.rst, include/linux/hmm.h:HMM_RANGE_DEFAULT_TIMEOUT (v5.18).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from errno import EBUSY
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from gpuhmm.errors import HmmError
from gpuhmm.hmm.backends import BackendInfo, hmm_range_fault, hmm_range_fault_runs, resolve_backend
from gpuhmm.hmm.ranges import HmmRange, RangeStats
from gpuhmm.hmm.runs import HmmRuns, Runs, runs_of_words
from gpuhmm.hmm.words import (
    HMM_PFN_ERROR,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    hmm_pfn_to_order,
    word_layout,
)
from gpuhmm.mm.notifier import MmuIntervalNotifier
from gpuhmm.mm.profile import KernelProfile

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

T = TypeVar("T")

HMM_RANGE_DEFAULT_TIMEOUT_MS = 1000

REQUESTS = {
    "none": 0,
    "read": int(HMM_PFN_REQ_FAULT),
    "write": int(HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE),
}


@dataclass(frozen=True)
class MirroredRange:
    """What a device may map of ``[start, end)``.

    ``hmm_pfns`` is uint64[npages], the words as the kernel gives them; ``tries`` counts the calls
    that it took, ``stats`` adds up what they did.
    """

    start: int
    end: int
    hmm_pfns: npt.NDArray[np.uint64]
    backend: str
    tries: int
    stats: RangeStats
    #: The kernel whose words they are.
    kernel: KernelProfile

    @property
    def pfns(self) -> npt.NDArray[np.uint64]:
        """uint64[npages]: the PFN of each page, 0 where there is none."""
        return self.hmm_pfns & word_layout(self.kernel).pfn

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """bool[npages]: the device may read the page."""
        return (self.hmm_pfns & HMM_PFN_VALID) != 0

    @property
    def writable(self) -> npt.NDArray[np.bool_]:
        """bool[npages]: the device may write the page."""
        return (self.hmm_pfns & HMM_PFN_WRITE) != 0

    @property
    def error(self) -> npt.NDArray[np.bool_]:
        """bool[npages]: nothing can ever be mapped there."""
        return (self.hmm_pfns & HMM_PFN_ERROR) != 0

    @property
    def orders(self) -> npt.NDArray[np.uint8]:
        """uint8[npages]: log2 of the pages in the CPU mapping behind each page: 0, 9 or 18."""
        return hmm_pfn_to_order(self.hmm_pfns, self.kernel)

    def runs(self) -> Runs:
        """Return the maximal contiguous runs of valid pages: ``gpuhmm.hmm.runs.RUN_DTYPE``[n], by address."""
        runs = runs_of_words(self.start, self.hmm_pfns, self.kernel)
        return runs[(runs["flags"] & HMM_PFN_VALID) != 0]


@dataclass(frozen=True)
class MirroredRuns:
    """What a device may map of ``[start, end)``, as runs: ``gpuhmm.hmm.runs.RUN_DTYPE``[n], by address.

    They leave no gap: holes and errors are runs as well.
    """

    start: int
    end: int
    runs: Runs
    backend: str
    tries: int
    stats: RangeStats
    #: The kernel that walked; ``gpuhmm.expand_runs(runs, kernel)`` gives its words.
    kernel: KernelProfile


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
    ``timeout_ms`` of that, HmmFaultError and HmmPermissionError for pages that cannot be had.
    """
    info = _checked(request, timeout_ms, backend)
    stats = RangeStats()

    def ask(notifier: MmuIntervalNotifier, seq: int) -> tuple[int, npt.NDArray[np.uint64]]:
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
        return hmm_range_fault(range_, backend=info.name), words

    words, tries = _until_valid(mm, start, end, timeout_ms, ask)
    return MirroredRange(start, end, words, info.name, tries, stats, mm.kernel)


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

    def ask(notifier: MmuIntervalNotifier, seq: int) -> tuple[int, Runs]:
        wanted = HmmRuns(
            notifier,
            start,
            end,
            notifier_seq=seq,
            default_flags=REQUESTS[request],
            dev_private_owner=dev_private_owner,
            stats=stats,
        )
        return hmm_range_fault_runs(wanted, backend=info.name), wanted.runs

    runs, tries = _until_valid(mm, start, end, timeout_ms, ask)
    return MirroredRuns(start, end, runs, info.name, tries, stats, mm.kernel)


def _checked(request: str, timeout_ms: float, backend: str) -> BackendInfo:
    if request not in REQUESTS:
        raise ValueError(f"request must be one of {', '.join(REQUESTS)} (got {request!r})")
    if not timeout_ms > 0:
        raise ValueError(f"timeout_ms must be positive (got {timeout_ms})")
    return resolve_backend(backend)


def _until_valid(
    mm: AddressSpace,
    start: int,
    end: int,
    timeout_ms: float,
    ask: Callable[[MmuIntervalNotifier, int], tuple[int, T]],
) -> tuple[T, int]:
    """Ask until an answer was not invalidated meanwhile; return it and how often was asked."""
    notifier = mm.notifier(start, end)
    deadline = time.monotonic() + timeout_ms / 1000
    tries = 0
    try:
        while True:
            tries += 1
            seq = notifier.read_begin()
            ret, answer = ask(notifier, seq)
            if ret == 0 and not notifier.read_retry(seq):
                return answer, tries
            if ret not in (0, -EBUSY) or time.monotonic() > deadline:
                raise HmmError.of(ret or -EBUSY, start, end)
    finally:
        notifier.remove()
