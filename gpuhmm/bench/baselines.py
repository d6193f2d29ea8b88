"""Loops that move what a walk must move, and decide nothing."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

_VALID = np.uint64(1 << 63)


@njit(parallel=True)
def copy(source, target):
    """Read 8 bytes a page, write 8."""
    for i in prange(target.size):
        target[i] = source[i]


@njit(parallel=True)
def update(source, target):
    """Read 16 bytes a page, write 8 of them again."""
    for i in prange(target.size):
        target[i] = (target[i] & _VALID) | source[i]


@njit(parallel=True)
def fill(source, target):
    """Write 8 bytes a page."""
    for i in prange(target.size):
        target[i] = _VALID


#: Name -> the loop and the bytes that it moves for each page.
BASELINES = {"copy": (copy, 16), "update": (update, 24), "fill": (fill, 8)}
