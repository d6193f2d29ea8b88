"""HmmRange: what is asked of ``hmm_range_fault()``, checked.

Source: include/linux/hmm.h:struct hmm_range (v5.18).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from gpuhmm.errors import ArrayTypeError
from gpuhmm.mm.handler import FAULT_FLAG_REMOTE
from gpuhmm.mm.notifier import MmuIntervalNotifier


@dataclass
class WalkStep:
    """One ``walk_page_range(start, end)`` of a call, in bytes, and its return code."""

    start: int
    end: int
    ret: int = 0


@dataclass
class RangeStats:
    """What one call did, as the sequential kernel would count it."""

    #: How often the notifier was asked before a walk (mmu_interval_check_retry).
    walks: int = 0
    #: Calls of handle_mm_fault().
    faults: int = 0
    #: Waits for a page or a huge page under migration.
    migration_waits: int = 0
    #: Huge PUDs that the walk itself split.
    splits: int = 0
    #: Faults that gave the mmap lock up and so ended the call (v7.3 and later).
    locks_dropped: int = 0
    #: Where every walk began and how it ended, if somebody wants to know: a list that it is added to.
    trace: list[Any] | None = None

    def begin_walk(self, start: int, end: int) -> WalkStep:
        """Count a walk that begins, and return the step whose ``ret`` is to be set when it ends."""
        step = WalkStep(start, end)
        if self.trace is not None:
            self.trace.append(step)
        return step


@dataclass
class HmmRange:
    """A ``struct hmm_range`` over ``[start, end)`` bytes.

    ``hmm_pfns`` is uint64[(end - start) / 4096], written in place: requests as input, HMM_PFN words
    as output.  For the ``cuda`` back end it may be a device array with
    ``__cuda_array_interface__``.  ValueError for unaligned or reversed ranges and for
    arrays of the wrong dtype, length or strides.  An empty range is the model's own error: -EINVAL.
    """

    notifier: MmuIntervalNotifier
    start: int
    end: int
    hmm_pfns: Any
    notifier_seq: int = 0
    default_flags: int = 0
    pfn_flags_mask: int = 0
    dev_private_owner: int = 0
    stats: RangeStats = field(default_factory=RangeStats)

    #: The flags of every fault, beside FAULT_FLAG_WRITE where it is needed.
    fault_flags: ClassVar[int] = FAULT_FLAG_REMOTE

    def __post_init__(self) -> None:
        self.check()

    @property
    def npages(self) -> int:
        """Pages of 4 KiB in the range."""
        return (self.end - self.start) >> 12

    @property
    def on_device(self) -> bool:
        """True if ``hmm_pfns`` lies in device memory."""
        return not isinstance(self.hmm_pfns, np.ndarray)

    def check(self) -> None:
        """Raise unless every field may be used; called again by ``hmm_range_fault()``."""
        check_fields(self)
        self._check_words()

    def _check_words(self) -> None:
        words = self.hmm_pfns
        if isinstance(words, np.ndarray):
            flags = words.flags
            dtype, shape, writable = words.dtype, words.shape, flags.writeable
            strides = None if flags.c_contiguous else words.strides
        elif hasattr(words, "__cuda_array_interface__"):
            interface = words.__cuda_array_interface__
            dtype, shape = np.dtype(interface["typestr"]), interface["shape"]
            strides, writable = interface.get("strides"), not interface["data"][1]
            strides = None if strides == (8,) else strides
        elif hasattr(words, "copy_to_host"):  # the simulator's arrays have no interface of their own
            dtype, shape, strides, writable = words.dtype, words.shape, None, True
        else:
            raise ArrayTypeError(f"hmm_pfns must be an array of uint64 (got {type(words).__name__})")
        if dtype != np.uint64:
            raise ArrayTypeError(f"hmm_pfns must be an array of uint64 (got {dtype})")
        if shape != (self.npages,):
            raise ValueError(f"hmm_pfns must have one word a page, shape ({self.npages},) (got {shape})")
        if strides is not None:
            raise ValueError(f"hmm_pfns must be contiguous (got strides {strides})")
        if not writable:
            raise ValueError("hmm_pfns must be writable (got a read-only array)")


def check_fields(request: Any) -> None:
    """Raise unless notifier, bounds and flags of an ``HmmRange`` or its like may be used."""
    if not isinstance(request.notifier, MmuIntervalNotifier):
        raise TypeError(f"notifier must come from AddressSpace.notifier() (got {request.notifier!r})")
    numbers = (
        request.start,
        request.end,
        request.notifier_seq,
        request.default_flags,
        request.pfn_flags_mask,
        request.dev_private_owner,
    )
    # Every call asks this again, of fields that hardly ever changed: a few operations for all of them.
    if {*map(type, numbers)} != {int} or min(numbers) < 0 or max(numbers) >= 1 << 64:
        _check_numbers(request)
    start, end = request.start, request.end
    if start % 4096 or end % 4096:
        raise ValueError(f"start and end must be page aligned (got {start:#x}, {end:#x})")
    if start > end:
        raise ValueError(f"start must not lie above end (got {start:#x}, {end:#x})")
    if end > request.notifier.mm.task_size:
        raise ValueError(f"end must not exceed {request.notifier.mm.task_size:#x} (got {end:#x})")


def _check_numbers(request: Any) -> None:
    """Make the numbers of a request Python's own, and raise for one that 64 unsigned bits cannot hold."""
    for name in ("start", "end", "notifier_seq", "default_flags", "pfn_flags_mask", "dev_private_owner"):
        value = int(getattr(request, name))
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{name} must fit in 64 unsigned bits (got {value:#x})")
        if name in vars(request):
            setattr(request, name, value)  # a NumPy scalar would be slow, and wrap
