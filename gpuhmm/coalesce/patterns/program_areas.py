"""What a pattern makes: the memory that a program works on, and the program."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.areas import BLOCK_SHIFT, Area, DeviceAreas
from gpuhmm.coalesce.device.program import Program

#: Where the first array of a pattern lies.
BASE = 1 << 40


@dataclass(frozen=True)
class Workload:
    """A program with the areas that its page numbers count in, one area an array, by ``names``."""

    areas: DeviceAreas
    program: Program
    names: tuple[str, ...]

    def touched(self) -> npt.NDArray[np.bool_]:
        """Return which pages the program needs: bool[npages]."""
        return self.program.touched(self.areas.npages)

    def written(self) -> npt.NDArray[np.bool_]:
        """Return which pages the program writes: bool[npages]."""
        return self.program.written(self.areas.npages)


class Arrays:
    """Arrays as cudaMallocManaged lays them out: each from a boundary of 2 MiB on, up to its last page.

    ``first[name]`` is the number of an array's first page.
    """

    def __init__(self, **sizes: int) -> None:
        areas, start, pages = [], BASE, 0
        self.first: dict[str, int] = {}
        for name, size in sizes.items():
            npages = -(-size // 4096)
            areas.append(Area(0, start, start + (npages << 12)))
            self.first[name] = pages
            pages += npages
            start += -(-(npages << 12) >> BLOCK_SHIFT) << BLOCK_SHIFT
        self.areas = DeviceAreas(areas)

    def work(self, program: Program) -> Workload:
        """Return the workload of a program over these arrays."""
        return Workload(self.areas, program, tuple(self.first))
