"""The convolution of CUDA's simpleCUFFT sample: Fourier transforms in passes with strides."""

from __future__ import annotations

import numpy as np

from gpuhmm.coalesce.patterns.grid import Kernel, program, read, write
from gpuhmm.coalesce.patterns.parameters import power, whole
from gpuhmm.coalesce.patterns.program_areas import Arrays, Workload
from gpuhmm.coalesce.patterns.rows import run

#: Consecutive points that a block takes of each row of its pass: 128 bytes of them.
_TOGETHER = 16
#: Points that a thread holds.
_EACH = 8
_POINT = 8


def cufft(points: int = 1 << 22, radix: int = 256, blocks: int = 32) -> Workload:
    """Transform signal and filter, multiply them point by point, transform back.  SC21 ran 80 M points.

    ``points`` of two floats.  The first pass of a transform reads the array: a block takes 16 consecutive
    points of ``radix`` rows that are ``points / radix`` apart.  What passes hand on lies in memory of the
    library that is never unmapped, and makes no faults.  The last pass writes the array in the same
    shape.  The product runs on ``blocks`` blocks of 256 threads that go over the arrays together.
    """
    points = power("points", points, 1 << 13, 1 << 28)
    radix = power("radix", radix, 32, 1024)
    blocks = whole("blocks", blocks, 1, 1 << 16)
    if points // radix % _TOGETHER:
        raise ValueError(f"points must be at least {radix * _TOGETHER} (got {points})")
    arrays = Arrays(signal=points * _POINT, filter=points * _POINT)
    threads = radix * _TOGETHER // _EACH
    in_block = threads // 32
    stride = points // radix
    count = stride // _TOGETHER
    first = (np.arange(count)[:, None] * _TOGETHER + np.zeros(in_block, dtype=np.int64)).reshape(-1)
    row = np.tile(np.arange(in_block) * 2, count)

    def rows(name: str, turn: int) -> np.ndarray:
        """Two rows a warp, ``in_block`` warps a turn."""
        at = (row[:, None] + turn * in_block * 2 + np.arange(2)) * stride + first[:, None]
        return run(arrays.first[name], at.reshape(-1) * _POINT, _TOGETHER * _POINT).reshape(len(row), -1)

    def transform(name: str) -> list[Kernel]:
        made = [rows(name, turn) for turn in range(_EACH)]
        return [
            Kernel(threads, [read(lines) for lines in made]),
            Kernel(threads, [write(lines, flags=0) for lines in made]),
        ]

    warp = np.arange(blocks * 8) * 32
    product = []
    for start in range(0, points, blocks * 256):
        at = (start + warp) * _POINT
        pages = [run(arrays.first[name], at, 32 * _POINT) for name in ("signal", "filter")]
        for each in pages:
            each[warp + start >= points] = -1
        product += [read(pages[0]), read(pages[1]), write(pages[0])]
    signal = transform("signal")
    return arrays.work(program([*signal, *transform("filter"), Kernel(256, product), *signal]))
