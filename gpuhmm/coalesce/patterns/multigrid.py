"""Geometric multigrid over boxes, after HPGMG's finite-volume cycle."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.device.program import OP_WAITS
from gpuhmm.coalesce.patterns.grid import Kernel, program, read, write
from gpuhmm.coalesce.patterns.parameters import power, whole
from gpuhmm.coalesce.patterns.program_areas import Arrays, Workload
from gpuhmm.coalesce.patterns.rows import run

_ELEMENT = 8


def hpgmg(box: int = 64, boxes: int = 8, smooths: int = 2, coarsest: int = 4, planes: int = 8) -> Workload:
    """A V cycle: smooth and restrict down to boxes of ``coarsest``, then interpolate and smooth back up.

    ``boxes`` boxes of ``box`` cubed doubles, with one layer of ghosts around each, on every level half
    as long.  The 7-point smoother reads u, the right-hand side f and the inverse diagonal d, and writes to t;
    the next one goes from t to u.  Blocks are 32 x 4 threads over i and j, and march over ``planes`` of k.
    """
    box = power("box", box, 4, 512)
    boxes = whole("boxes", boxes, 1, 4096)
    smooths = whole("smooths", smooths, 1, 16)
    coarsest = power("coarsest", coarsest, 2, box)
    planes = power("planes", planes, 1, 512)
    sides = [box >> level for level in range(64) if box >> level >= coarsest]
    sizes = {
        f"{name}{level}": boxes * (side + 2) ** 3 * _ELEMENT
        for level, side in enumerate(sides)
        for name in "ufdt"
    }
    arrays = Arrays(**sizes)
    down: list[Kernel] = []
    up: list[Kernel] = []
    for level, side in enumerate(sides):
        sweep = [
            _smooth(arrays, level, side, boxes, planes, ("u", "t") if turn % 2 == 0 else ("t", "u"))
            for turn in range(smooths)
        ]
        down += sweep
        if level + 1 < len(sides):
            down.append(_between(arrays, level, side, boxes, planes, True))
            up = [_between(arrays, level, side, boxes, planes, False), *sweep, *up]
    return arrays.work(program(down + up))


class _Level:
    """The warps of a kernel over one level: where each one's row of i lies, plane by plane."""

    def __init__(self, arrays: Arrays, level: int, side: int, boxes: int, planes: int) -> None:
        self.first = {name: arrays.first[f"{name}{level}"] for name in "ufdt"}
        self.side = side
        self.march = min(planes, side)
        wide, high, deep = -(-side // 32), -(-side // 4), side // self.march
        shape = (boxes, deep, high, wide, 4)
        self.box, chunk, tile, across, within = np.unravel_index(np.arange(np.prod(shape)), shape)
        self.k = chunk * self.march
        self.j = tile * 4 + within
        self.i = across * 32
        self.length = min(side, 32)

    def row(self, name: str, plane: int, dj: int = 0, dk: int = 0, wider: int = 0) -> npt.NDArray[np.int64]:
        """Return the lines of the rows at a plane of the march: int64[warps, k], -1 past the box."""
        span = self.side + 2
        at = ((self.box * span + self.k + plane + dk + 1) * span + self.j + dj + 1) * span + self.i + 1
        lines = run(self.first[name], (at - wider) * _ELEMENT, (self.length + 2 * wider) * _ELEMENT)
        lines[self.j >= self.side] = -1
        return lines


def _smooth(arrays: Arrays, level: int, side: int, boxes: int, planes: int, names: tuple[str, str]) -> Kernel:
    over = _Level(arrays, level, side, boxes, planes)
    source, target = names
    steps = []
    for plane in range(over.march):
        if plane == 0:
            steps.append(read(over.row(source, 0, dk=-1)))
        steps += [
            read(over.row(source, plane, wider=1)),
            read(over.row(source, plane, dk=1)),
            read(over.row(source, plane, dj=-1)),
            read(over.row(source, plane, dj=1)),
            read(over.row("f", plane)),
            read(over.row("d", plane)),
            write(over.row(target, plane)),
        ]
    return Kernel(128, steps)


def _between(arrays: Arrays, level: int, side: int, boxes: int, planes: int, down: bool) -> Kernel:
    """Restrict u of a level to f of the next one, or interpolate u of the next one into u of a level."""
    coarse = _Level(arrays, level + 1, side // 2, boxes, planes)
    fine = arrays.first[f"u{level}"]
    span = side + 2
    steps = []
    for plane in range(coarse.march):
        rows = []
        for dk in range(2):
            for dj in range(2):
                k, j = (coarse.k + plane) * 2 + dk + 1, coarse.j * 2 + dj + 1
                at = ((coarse.box * span + k) * span + j) * span + coarse.i * 2 + 1
                lines = run(fine, at * _ELEMENT, coarse.length * 2 * _ELEMENT)
                lines[coarse.j >= side // 2] = -1
                rows.append(lines)
        if down:
            steps += [*(read(lines) for lines in rows), write(coarse.row("f", plane))]
        else:
            steps += [read(coarse.row("u", plane)), *(read(lines) for lines in rows)]
            steps += [write(lines, flags=OP_WAITS if at == 0 else 0) for at, lines in enumerate(rows)]
    return Kernel(128, steps)
