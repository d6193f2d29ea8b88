"""The lanes of a warp that go to the same line of 128 bytes are one access.  Compiled."""

from __future__ import annotations

from numba import njit

from gpuhmm.coalesce.patterns.rows import PAGE_LINES_SHIFT
from gpuhmm.kernels.compile_cache import cached


@njit
def _is_first(lanes, row, lane):
    """Return True for a lane whose line no lane before it has; False for one that takes no part."""
    line = lanes[row, lane]
    if line < 0:
        return False
    for before in range(lane - 1, -1, -1):  # neighbours first: that is where it mostly is
        if lanes[row, before] == line:
            return False
    return True


def _count(lanes, counts, at):
    """Store in ``counts[:, at]`` how many lines each row has."""
    for row in range(lanes.shape[0]):
        found = 0
        for lane in range(lanes.shape[1]):
            found += _is_first(lanes, row, lane)
        counts[row, at] = found


def _fill(lanes, firsts, at, pages):
    """Store the page of each line of a row from ``firsts[row, at]`` on, in the order of lanes."""
    for row in range(lanes.shape[0]):
        to = firsts[row, at]
        for lane in range(lanes.shape[1]):
            if _is_first(lanes, row, lane):
                pages[to] = lanes[row, lane] >> PAGE_LINES_SHIFT
                to += 1


count_pages = cached(njit(_count))
fill_pages = cached(njit(_fill))
