"""What warps touch, in lines of 128 bytes: that much a warp's load or store asks for at a time.

A load of 8 or 16 bytes a lane is carried out in halves or quarters of the warp, each looking up its page:
so a µTLB faults twice or four times in a row on one page, which is what UVM merges at fetch.  That a fault
is written for each is assumed.  It is what brings sgemm's share of duplicates near the published 87 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

#: Bytes of a line, lines of a page, as shifts.
LINE_SHIFT, PAGE_LINES_SHIFT = 7, 5


def line_of(first_page: int, offset: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the line of each byte ``offset`` of an array that begins at page ``first_page``."""
    return np.asarray((first_page << PAGE_LINES_SHIFT) + (offset >> LINE_SHIFT), dtype=np.int64)


def run(first_page: int, offset: npt.NDArray[Any], size: int) -> npt.NDArray[np.int64]:
    """Return the lines of ``size`` bytes from each byte ``offset`` of an array on: int64[n, k].

    The last line stands again where a run has fewer lines than others.
    """
    low, high = line_of(first_page, offset), line_of(first_page, offset + size - 1)
    steps = np.arange(((size - 2) >> LINE_SHIFT) + 2, dtype=np.int64)
    return np.minimum(low[:, None] + steps, high[:, None])
