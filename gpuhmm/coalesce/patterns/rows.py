"""Pages of the rows that warps go through: a run of bytes a warp, wherever it begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def run(first_page: int, offset: npt.NDArray[Any], size: int) -> npt.NDArray[np.int64]:
    """Return the pages of ``size`` bytes from each byte ``offset`` of an array on: int64[n, k].

    The first page stands again where the last one would be past the end of the run.
    """
    low = offset >> 12
    high = (offset + size - 1) >> 12
    steps = np.arange(-(-(size - 1) // 4096) + 1, dtype=np.int64)
    return first_page + np.minimum(low[:, None] + steps, high[:, None])
