"""What happened to one page between two captures: one decision, compiled for every target."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from gpuhmm.mm.x86 import U64
from gpuhmm.shared import shared
from gpuhmm.translation.words import (
    LEVEL_MASK,
    LEVEL_SHIFT,
    PA_MASK,
    REASON_MASK,
    REASON_SHIFT,
    Reason,
    has_address,
)


class Change(IntEnum):
    """What happened to a page.  A huge page that is split or collapsed counts 512 times."""

    NONE = 0
    MAPPED = 1
    UNMAPPED = 2
    MOVED = 3  # another PFN behind a page of the same size
    SPLIT = 4  # smaller pages, at the same PFNs or others
    COLLAPSED = 5  # a larger page
    SWAPPED_OUT = 6  # present before, an entry that is not present now
    SWAPPED_IN = 7


_NONE = U64(Change.NONE)
_MAPPED = U64(Change.MAPPED)
_UNMAPPED = U64(Change.UNMAPPED)
_MOVED = U64(Change.MOVED)
_SPLIT = U64(Change.SPLIT)
_COLLAPSED = U64(Change.COLLAPSED)
_SWAPPED_OUT = U64(Change.SWAPPED_OUT)
_SWAPPED_IN = U64(Change.SWAPPED_IN)

_NOT_PRESENT = U64(Reason.NOT_PRESENT)


@shared("uint64(uint64, uint64)")
def page_change(before: np.uint64, after: np.uint64) -> np.uint64:
    """Return the Change between two words of :mod:`gpuhmm.translation.words`."""
    was_here = has_address(before)
    is_here = has_address(after)
    if was_here and is_here:
        level_before = (before >> LEVEL_SHIFT) & LEVEL_MASK
        level_after = (after >> LEVEL_SHIFT) & LEVEL_MASK
        if level_after < level_before:
            return _SPLIT
        if level_after > level_before:
            return _COLLAPSED
        if (before & PA_MASK) != (after & PA_MASK):
            return _MOVED
        return _NONE
    if is_here:
        if (before >> REASON_SHIFT) & REASON_MASK == _NOT_PRESENT:
            return _SWAPPED_IN
        return _MAPPED
    if was_here:
        if (after >> REASON_SHIFT) & REASON_MASK == _NOT_PRESENT:
            return _SWAPPED_OUT
        return _UNMAPPED
    return _NONE
