"""Kernels from what every warp does in turn: lanes that share a line joined, offsets laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.access import ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.device.config import WARP_LANES
from gpuhmm.coalesce.device.program import OP_WAITS, Program
from gpuhmm.coalesce.patterns.lanes import count_pages, fill_pages


@dataclass
class Step:
    """One instruction of all warps of a kernel.

    ``lines`` is int[warps, lanes], the line of 128 bytes (``rows.line_of``) that each lane goes to, -1 where
    a lane does not take part; lanes that go to the same line anyway may stand for each other.
    """

    lines: npt.NDArray[Any]
    access: int = ACCESS_READ
    flags: int = 0


def read(lines: npt.NDArray[Any], flags: int = 0) -> Step:
    """Return a load of every warp."""
    return Step(lines, ACCESS_READ, flags)


def write(lines: npt.NDArray[Any], flags: int = OP_WAITS) -> Step:
    """Return a store of every warp, of what it loaded before."""
    return Step(lines, ACCESS_WRITE, flags)


@dataclass
class Kernel:
    """A kernel whose warps all do the same steps: ``threads`` a block, warps in the order of threads."""

    threads: int
    steps: Sequence[Step]
    residency: int = 0


def program(kernels: Sequence[Kernel]) -> Program:
    """Return kernels that run one after the other."""
    parts = [_kernel(kernel) for kernel in kernels]
    ops = [part[1] for part in parts]
    warps = [len(kernel.steps[0].lines) for kernel in kernels]
    blocks = [-(-count // _warps(kernel)) for count, kernel in zip(warps, kernels, strict=True)]
    in_block = [
        np.minimum(np.arange(n, dtype=np.int64) * _warps(kernel) + _warps(kernel), count)
        - np.arange(n, dtype=np.int64) * _warps(kernel)
        for n, count, kernel in zip(blocks, warps, kernels, strict=True)
    ]
    steps = [np.full(count, len(kernel.steps)) for count, kernel in zip(warps, kernels, strict=True)]
    return Program(
        kernel_blocks=offsets(blocks),
        kernel_threads=np.array([kernel.threads for kernel in kernels], dtype=np.int64),
        kernel_residency=np.array([kernel.residency for kernel in kernels], dtype=np.int64),
        block_warps=offsets(np.concatenate(in_block)),
        warp_ops=offsets(np.concatenate(steps)),
        op_pages=offsets(np.concatenate(ops)),
        op_access=_repeated([step.access for step in kernel.steps] for kernel in kernels)(warps),
        op_flags=_repeated([step.flags for step in kernel.steps] for kernel in kernels)(warps),
        pages=np.concatenate([part[0] for part in parts]),
    )


def offsets(counts: Any) -> npt.NDArray[np.int64]:
    """Return where each of some runs begins, and the end: int64[n + 1]."""
    made = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=made[1:])
    return made


def _warps(kernel: Kernel) -> int:
    return -(-kernel.threads // WARP_LANES)


def _repeated(rows: Any) -> Any:
    made = [np.array(row, dtype=np.uint8) for row in rows]
    return lambda warps: np.concatenate([np.tile(row, n) for row, n in zip(made, warps, strict=True)])


def _kernel(kernel: Kernel) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Return the pages of all accesses, warp by warp, and how many each access has."""
    warps, width = len(kernel.steps[0].lines), len(kernel.steps)
    counts = np.zeros((warps, width), dtype=np.int64)
    lanes = [np.ascontiguousarray(step.lines, dtype=np.int64) for step in kernel.steps]
    for at, lines in enumerate(lanes):
        count_pages(lines, counts, at)
    flat = counts.reshape(-1)
    firsts = offsets(flat)[:-1].reshape(warps, width)
    made = np.zeros(int(flat.sum()), dtype=np.uint32)
    for at, lines in enumerate(lanes):
        fill_pages(lines, firsts, at, made)
    return made, flat
