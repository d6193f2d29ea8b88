"""Loops that move what a walk must move, and decide nothing.

Each is there as numba makes it and with stores past the caches, which fetch no line that they overwrite; a
copy also as the C library's, on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, njit, prange

from gpuhmm.kernels.lanes import (
    LINE,
    finish_stores,
    load_line,
    prefetch,
    spread,
    store_line_past_caches,
)
from gpuhmm.mm.tables import Words

_VALID = np.uint64(1 << 63)
_ONE = np.uint64(1)
#: As far as a walk asks ahead.
_AHEAD = np.uint64(128)


@njit(parallel=True)
def _copy(source, target):
    for i in prange(target.size):
        target[i] = source[i]


@njit(parallel=True)
def _update(source, target):
    for i in prange(target.size):
        target[i] = (target[i] & _VALID) | source[i]


@njit(parallel=True)
def _fill(source, target):
    for i in prange(target.size):
        target[i] = _VALID


@njit(_nrt=False)
def _copy_piece(source, target, at, end):
    while at < end:
        prefetch(source, at + _AHEAD)
        store_line_past_caches(target, at, load_line(source, at))
        at = at + LINE


@njit(_nrt=False)
def _update_piece(source, target, at, end):
    while at < end:
        prefetch(source, at + _AHEAD)
        prefetch(target, at + _AHEAD)
        store_line_past_caches(target, at, (load_line(target, at) & _VALID) | load_line(source, at))
        at = at + LINE


@njit(_nrt=False)
def _fill_piece(source, target, at, end):
    line = spread(_VALID)
    while at < end:
        store_line_past_caches(target, at, line)
        at = at + LINE


def _past_caches(piece):
    """Return the loop of one thread's piece on all threads; lengths are multiples of a line."""

    @njit(parallel=True)
    def loop(source, target, pieces):
        lines = np.uint64(target.size) // LINE
        for i in prange(pieces):
            number = np.uint64(i)
            begin = lines * number // np.uint64(pieces)
            end = lines * (number + _ONE) // np.uint64(pieces)
            piece(source, target, begin * LINE, end * LINE)
            finish_stores()

    return lambda source, target: loop(source, target, get_num_threads())


def _memcpy(source, target):
    np.copyto(target, source)


class Baseline(NamedTuple):
    """The ways of one loop by name, and the bytes that it moves for each page."""

    loops: dict[str, Callable[[Words, Words], None]]
    bytes_per_page: int

    def seconds(self, source: Words, target: Words) -> dict[str, float]:
        """Return what each way takes now."""
        times = {}
        for name, loop in self.loops.items():
            start = time.perf_counter()
            loop(source, target)
            times[name] = time.perf_counter() - start
        return times


#: Copies read 8 bytes a page and write 8; updates read 16 and write 8 of them again; fills write 8.
BASELINES = {
    "copy": Baseline({"numba": _copy, "past caches": _past_caches(_copy_piece), "memcpy": _memcpy}, 16),
    "update": Baseline({"numba": _update, "past caches": _past_caches(_update_piece)}, 24),
    "fill": Baseline({"numba": _fill, "past caches": _past_caches(_fill_piece)}, 8),
}
