"""The call that may give the mmap lock up while it faults, and starts anew then.

Source: mm/hmm.c:hmm_range_fault_unlocked_timeout, hmm_range_fault_locked (v7.3).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from errno import EBUSY
from typing import ClassVar

from gpuhmm.hmm.backends import hmm_range_fault
from gpuhmm.hmm.ranges import HmmRange
from gpuhmm.mm.handler import FAULT_FLAG_ALLOW_RETRY, FAULT_FLAG_KILLABLE, FAULT_FLAG_REMOTE


@dataclass
class _Round(HmmRange):
    """One round: its faults may give the lock up."""

    fault_flags: ClassVar[int] = FAULT_FLAG_REMOTE | FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE


def hmm_range_fault_unlocked_timeout(range_: HmmRange, timeout: float, backend: str = "auto") -> int:
    """Walk ``range_`` until a round was not invalidated; return 0 or a negative errno.

    Each round takes a new sequence, which is in ``range_.notifier_seq`` afterwards, and calls
    :func:`gpuhmm.hmm_range_fault` with faults that may give the mmap lock up, as for userfaultfd.  After one
    that did (VM_FAULT_RETRY, VM_FAULT_COMPLETED) the next round begins at ``range_.start`` with the words as
    they are: with a mask, outputs are requests then.  -EBUSY when ``timeout`` seconds (0: never) are over at
    the begin of a round; they count anew after a fault that gave the lock up, not after an invalidation.
    Other errors are those of :func:`gpuhmm.hmm_range_fault`.  ValueError for a kernel before v7.3, which has
    no such function, and for a negative ``timeout``.
    """
    kernel = range_.notifier.mm.kernel
    if not kernel.faults_after_walk:
        raise ValueError(f"hmm_range_fault_unlocked_timeout needs a kernel from v7.3 on (got {kernel.name})")
    if not timeout >= 0:
        raise ValueError(f"timeout must be seconds, 0 for none (got {timeout})")
    stats = range_.stats
    deadline = time.monotonic() + timeout
    while True:
        if timeout and time.monotonic() > deadline:
            return -EBUSY
        range_.notifier_seq = range_.notifier.read_begin()
        dropped = stats.locks_dropped
        ret = hmm_range_fault(_round(range_), backend)
        if ret != -EBUSY:
            return ret
        if stats.locks_dropped != dropped:
            deadline = time.monotonic() + timeout


def _round(range_: HmmRange) -> _Round:
    return _Round(
        range_.notifier,
        range_.start,
        range_.end,
        range_.hmm_pfns,
        notifier_seq=range_.notifier_seq,
        default_flags=range_.default_flags,
        pfn_flags_mask=range_.pfn_flags_mask,
        dev_private_owner=range_.dev_private_owner,
        stats=range_.stats,
    )
