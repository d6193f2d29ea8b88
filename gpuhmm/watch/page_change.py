"""What happened to pages between two captures."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from gpuhmm.mm.tables import Words
from gpuhmm.translation.words import LEVEL_MASK, LEVEL_SHIFT, PA_MASK, REASON_MASK, REASON_SHIFT, Reason

_PROTNONE = np.uint64(Reason.PROTNONE)
_NOT_PRESENT = np.uint64(Reason.NOT_PRESENT)


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


def page_changes(before: Words, after: Words) -> npt.NDArray[np.uint8]:
    """Return uint8[n], the Change of each page between two words of :mod:`gpuhmm.translation.words`."""
    reason_before, reason_after = ((words >> REASON_SHIFT) & REASON_MASK for words in (before, after))
    level_before, level_after = ((words >> LEVEL_SHIFT) & LEVEL_MASK for words in (before, after))
    was_here, is_here = reason_before <= _PROTNONE, reason_after <= _PROTNONE
    stayed, came, went = was_here & is_here, is_here & ~was_here, was_here & ~is_here
    changes = np.full(len(before), Change.NONE, dtype=np.uint8)
    # Of two sizes, only the size is told.
    changes[stayed & ((before & PA_MASK) != (after & PA_MASK))] = Change.MOVED
    changes[stayed & (level_after < level_before)] = Change.SPLIT
    changes[stayed & (level_after > level_before)] = Change.COLLAPSED
    changes[came] = Change.MAPPED
    changes[came & (reason_before == _NOT_PRESENT)] = Change.SWAPPED_IN
    changes[went] = Change.UNMAPPED
    changes[went & (reason_after == _NOT_PRESENT)] = Change.SWAPPED_OUT
    return changes
