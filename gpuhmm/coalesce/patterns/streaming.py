"""Patterns that pass over arrays once: vector add, stream, one page a thread."""

from __future__ import annotations

import numpy as np

from gpuhmm.coalesce.access import ACCESS_PREFETCH
from gpuhmm.coalesce.device.config import WARP_LANES
from gpuhmm.coalesce.patterns.grid import Kernel, Step, program, read, write
from gpuhmm.coalesce.patterns.parameters import flag, whole
from gpuhmm.coalesce.patterns.program_areas import Arrays, Workload
from gpuhmm.coalesce.patterns.rows import line_of, run


def vector_add(pages: int = 32, block: int = 32, prefetch: int = 0) -> Workload:
    """c = a + b, one element in each page, one page a lane: the ``abc`` of SC21's artifact.

    ``pages`` of each array, blocks of ``block`` threads; with ``prefetch`` the pages of b, a and c are
    prefetched first, by prefetch.global.L2.  The compiler loads b first, as the recorded log shows.
    """
    pages = whole("pages", pages, 1, 1 << 25)
    block = whole("block", block, 1, 1024)
    arrays = Arrays(a=pages << 12, b=pages << 12, c=pages << 12)
    lanes = _threads(pages, block)
    a, b, c = (_pages(arrays.first[name], lanes) for name in "abc")
    ahead = [Step(array, ACCESS_PREFETCH) for array in (b, a, c)] if flag("prefetch", prefetch) else []
    return arrays.work(program([Kernel(block, [*ahead, read(b), read(a), write(c)])]))


def stream(size: int = 96 << 20, block: int = 1024, element: int = 8, repeats: int = 1) -> Workload:
    """BabelStream's triad a = b + s * c: one thread an element, ``size`` bytes of all three arrays."""
    size = whole("size", size, 1, 1 << 34)
    block = whole("block", block, WARP_LANES, 1024, WARP_LANES)
    element = whole("element", element, 4, 16, 4)
    repeats = whole("repeats", repeats, 1, 1000)
    count = max(size // 3 // element // block, 1) * block
    arrays = Arrays(a=count * element, b=count * element, c=count * element)
    first = np.arange(count // WARP_LANES, dtype=np.int64) * (WARP_LANES * element)
    a, b, c = (run(arrays.first[name], first, WARP_LANES * element) for name in "abc")
    return arrays.work(program([Kernel(block, [read(b), read(c), write(a)])] * repeats))


def regular(pages: int = 65536, block: int = 64) -> Workload:
    """Every page is read once, one page a thread, in the order of threads: SC21's ``linear``."""
    return _one_page_a_thread(pages, block, np.arange(whole("pages", pages, 1, 1 << 25), dtype=np.int64))


def random(pages: int = 65536, block: int = 64, seed: int = 1) -> Workload:
    """Every page is read once, one page a thread, in an order by chance: SC21's ``random``."""
    pages = whole("pages", pages, 1, 1 << 25)
    order = np.random.default_rng(whole("seed", seed, 0, 1 << 62)).permutation(pages)
    return _one_page_a_thread(pages, block, order)


def strided(pages: int = 65536, stride: int = 16, block: int = 64) -> Workload:
    """Every page is read once, one page a thread, ``stride`` pages from thread to thread.

    Thread t reads page ``t * stride`` until the array ends, then the same from page 1 on, and so forth.
    """
    pages = whole("pages", pages, 1, 1 << 25)
    stride = whole("stride", stride, 1, pages)
    starts = np.arange(stride, dtype=np.int64)
    order = (starts[:, None] + np.arange(-(-pages // stride), dtype=np.int64) * stride).reshape(-1)
    return _one_page_a_thread(pages, block, order[order < pages])


def _one_page_a_thread(pages: int, block: int, order: np.ndarray) -> Workload:
    block = whole("block", block, 1, 1024)
    arrays = Arrays(a=pages << 12)
    lanes = _threads(pages, block)
    return arrays.work(program([Kernel(block, [read(_pages(0, np.where(lanes < 0, -1, order[lanes])))])]))


def _pages(first_page: int, pages: np.ndarray) -> np.ndarray:
    """Return the first line of pages of an array, -1 for -1."""
    return np.where(pages < 0, -1, line_of(first_page, pages << 12))


def _threads(count: int, block: int) -> np.ndarray:
    """Return the thread of each lane of each warp, -1 past the end of a block or of all: [warps, 32]."""
    warps = -(-block // WARP_LANES)
    blocks = np.arange(-(-count // block), dtype=np.int64)[:, None, None]
    lanes = np.arange(warps * WARP_LANES, dtype=np.int64).reshape(1, warps, WARP_LANES)
    threads = blocks * block + lanes
    return np.where((lanes < block) & (threads < count), threads, -1).reshape(-1, WARP_LANES)
