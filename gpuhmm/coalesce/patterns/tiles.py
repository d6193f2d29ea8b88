"""A dense matrix product in tiles."""

from __future__ import annotations

import numpy as np
from numba import njit

from gpuhmm.coalesce.access import ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.device.program import OP_BARRIER, OP_WAITS, Program
from gpuhmm.coalesce.patterns.grid import offsets
from gpuhmm.coalesce.patterns.parameters import whole
from gpuhmm.coalesce.patterns.program_areas import Arrays, Workload
from gpuhmm.kernels.compile_cache import cached

#: Rows and columns of C that a block of 256 threads makes, the part of k that it loads at a time, and
#: blocks that the registers of an SM allow: those of cuBLAS's ``sgemm_128x128`` kernels.
TILE, STEP, THREADS, RESIDENCY = 128, 8, 256, 2
_WARPS = 8
#: Columns of a tile of B or C that a warp loads or stores: 16.
_COLUMNS = 16


def sgemm(n: int = 2048, blocks: int = 0) -> Workload:
    """C = A * B of n x n floats, column major, in tiles of 128 x 128, k in steps of 8.

    Every warp loads one column of the tile of A (512 bytes) and 16 columns of that of B (32 bytes each) a
    step, one step ahead of the product, and the block meets at a barrier a step.  Pages of B that the step
    before had are left out: they would be found.  At the end every warp stores 16 columns of C.  Tiles go
    down the columns of C.  ``blocks`` keeps only the first ones, 0 all.
    """
    n = whole("n", n, TILE, 1 << 15, TILE)
    tiles = n // TILE
    count = whole("blocks", blocks, 0, tiles * tiles) or tiles * tiles
    size = n * n * 4
    arrays = Arrays(a=size, b=size, c=size)
    steps = n // STEP
    ops = steps + _changes(n) + 1
    if count * _WARPS * ops > 1 << 27:
        raise ValueError(f"a product must have at most 2^27 accesses: give fewer blocks (got {count} of {n})")
    kind = np.zeros((2, ops), dtype=np.uint8)
    counts = np.zeros(count * _WARPS * ops, dtype=np.int64)
    pages = np.zeros(count * _WARPS * (steps * 4 + (ops - steps + 3) * _COLUMNS), dtype=np.uint32)
    firsts = np.array([arrays.first[name] for name in "abc"], dtype=np.int64)
    used = fill_tiles(n, count, firsts, kind, counts, pages)
    warps = count * _WARPS
    return arrays.work(
        Program(
            kernel_blocks=np.array([0, count], dtype=np.int64),
            kernel_threads=np.array([THREADS], dtype=np.int64),
            kernel_residency=np.array([RESIDENCY], dtype=np.int64),
            block_warps=np.arange(count + 1, dtype=np.int64) * _WARPS,
            warp_ops=np.arange(warps + 1, dtype=np.int64) * ops,
            op_pages=offsets(counts),
            op_access=np.tile(kind[0], warps),
            op_flags=np.tile(kind[1], warps),
            pages=pages[:used],
        )
    )


def _changes(n: int) -> int:
    """Return in how many steps the pages of B are others than in the step before."""
    column = np.arange(TILE, dtype=np.int64)[:, None] * n
    rows = np.arange(0, n, STEP, dtype=np.int64)
    at = ((column + rows) * 4) >> 12
    return 1 + int((at[:, 1:] != at[:, :-1]).any(axis=0).sum())


def _fill_tiles(n, count, firsts, kind, counts, pages):
    """Store accesses and pages of ``count`` tiles; return how many pages there are."""
    tiles = n // TILE
    op = 0
    used = 0
    for block in range(count):
        row = block % tiles * TILE
        column = block // tiles * TILE
        for warp in range(_WARPS):
            mine = column + warp * _COLUMNS
            at = 0
            for k in range(0, n, STEP):
                kind[0, at] = ACCESS_READ
                kind[1, at] = OP_BARRIER if k > 0 else 0
                for quarter in range(4):
                    pages[used] = firsts[0] + ((((k + warp) * n + row) * 4 + quarter * 128) >> 12)
                    used += 1
                counts[op] = 4
                at += 1
                op += 1
                changed = k == 0
                for other in range(column, column + TILE):
                    here = (other * n + k) * 4
                    changed |= here >> 12 != (here - STEP * 4) >> 12
                    if n % 1024 == 0:
                        break  # all columns begin at a page
                if changed:
                    kind[0, at] = ACCESS_READ
                    for other in range(mine, mine + _COLUMNS):
                        pages[used] = firsts[1] + (((other * n + k) * 4) >> 12)
                        used += 1
                    counts[op] = _COLUMNS
                    at += 1
                    op += 1
            kind[0, at] = ACCESS_WRITE
            kind[1, at] = OP_WAITS
            for other in range(mine, mine + _COLUMNS):
                for quarter in range(4):
                    pages[used] = firsts[2] + (((other * n + row) * 4 + quarter * 128) >> 12)
                    used += 1
            counts[op] = _COLUMNS * 4
            op += 1
    return used


fill_tiles = cached(njit(_fill_tiles))
