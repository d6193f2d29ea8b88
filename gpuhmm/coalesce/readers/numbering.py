"""Small numbers for the address spaces of a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

#: Address spaces that the column ``space`` can tell apart.
MAX_SPACES = 1 << 16


def number_by_appearance(
    values: npt.NDArray[Any],
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint16]]:
    """Return the distinct values by first appearance, and the number of each value among them.

    Pointers and process numbers differ from run to run, the order in which they appear seldom does.
    Numbers of more than MAX_SPACES distinct values do not fit and mean nothing.
    """
    distinct, firsts, places = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    numbers = np.empty(len(order), dtype=np.uint16)
    numbers[order] = np.arange(len(order)).astype(np.uint16)
    return distinct[order], numbers[places]
