"""What a Python user calls: the driver loop around ``hmm_range_fault()``.

Source: Documentation/mm/hmm.rst, include/linux/hmm.h:HMM_RANGE_DEFAULT_TIMEOUT (v5.18).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from errno import EBUSY
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuhmm.backends import hmm_range_fault, resolve_backend
from gpuhmm.errors import HmmError
from gpuhmm.hmm import (
    HMM_PFN_ERROR,
    HMM_PFN_FLAGS,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    hmm_pfn_to_order,
)
from gpuhmm.ranges import HmmRange, RangeStats

if TYPE_CHECKING:
    from gpuhmm.space import AddressSpace

HMM_RANGE_DEFAULT_TIMEOUT_MS = 1000

REQUESTS = {
    "none": 0,
    "read": int(HMM_PFN_REQ_FAULT),
    "write": int(HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE),
}

#: One maximal run: addresses and PFNs count up together, flags and order stay the same.
RUN_DTYPE = np.dtype(
    [("va", np.uint64), ("pfn", np.uint64), ("npages", np.uint64), ("flags", np.uint64), ("order", np.uint8)]
)


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

    @property
    def pfns(self) -> npt.NDArray[np.uint64]:
        """uint64[npages]: the PFN of each page, 0 where there is none."""
        return self.hmm_pfns & ~HMM_PFN_FLAGS

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
        return hmm_pfn_to_order(self.hmm_pfns)

    def runs(self) -> npt.NDArray[np.void]:
        """Return the maximal contiguous runs of valid pages: ``RUN_DTYPE``[n], by address.

        ``va`` is in bytes, ``npages`` in pages of 4 KiB, ``flags`` the VALID and WRITE bits.
        """
        words = self.hmm_pfns
        if not len(words):
            return np.empty(0, dtype=RUN_DTYPE)
        counts_up = words[1:] == words[:-1] + np.uint64(1)
        starts = np.concatenate(([0], np.flatnonzero(~counts_up) + 1))
        lengths = np.diff(np.concatenate((starts, [len(words)])))
        keep = (words[starts] & HMM_PFN_VALID) != 0
        starts, lengths = starts[keep], lengths[keep]
        runs = np.empty(len(starts), dtype=RUN_DTYPE)
        runs["va"] = np.uint64(self.start) + starts.astype(np.uint64) * np.uint64(4096)
        runs["pfn"] = words[starts] & ~HMM_PFN_FLAGS
        runs["npages"] = lengths
        runs["flags"] = words[starts] & (HMM_PFN_VALID | HMM_PFN_WRITE)
        runs["order"] = hmm_pfn_to_order(words[starts])
        return runs


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
    if request not in REQUESTS:
        raise ValueError(f"request must be one of {', '.join(REQUESTS)} (got {request!r})")
    if not timeout_ms > 0:
        raise ValueError(f"timeout_ms must be positive (got {timeout_ms})")
    info = resolve_backend(backend)
    notifier = mm.notifier(start, end)
    deadline = time.monotonic() + timeout_ms / 1000
    stats = RangeStats()
    tries = 0
    try:
        while True:
            tries += 1
            words = np.zeros((end - start) >> 12, dtype=np.uint64) if requests is None else requests.copy()
            range_ = HmmRange(
                notifier,
                start,
                end,
                words,
                notifier_seq=notifier.read_begin(),
                default_flags=REQUESTS[request],
                pfn_flags_mask=0 if requests is None else REQUESTS["write"],
                dev_private_owner=dev_private_owner,
                stats=stats,
            )
            ret = hmm_range_fault(range_, backend=info.name)
            if ret == 0 and not notifier.read_retry(range_.notifier_seq):
                return MirroredRange(start, end, words, info.name, tries, stats)
            if ret not in (0, -EBUSY) or time.monotonic() > deadline:
                raise HmmError.of(ret or -EBUSY, start, end)
    finally:
        notifier.remove()
