"""Stencils and sweeps: Jacobi's in two dimensions, Gauss-Seidel over a sparse matrix by colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.device.program import OP_WAITS
from gpuhmm.coalesce.patterns.grid import Kernel, program, read, write
from gpuhmm.coalesce.patterns.parameters import whole
from gpuhmm.coalesce.patterns.program_areas import Arrays, Workload
from gpuhmm.coalesce.patterns.rows import line_of, run


def jacobi2d(n: int = 2048, element: int = 4, sweeps: int = 2, rows: int = 8) -> Workload:
    """PolyBench's jacobi2D: b from the five neighbours in a, then a copy of b to a, a kernel each.

    ``n`` x ``n`` elements, row by row; blocks of 32 x ``rows`` threads, one an element; blocks go along rows.
    """
    n = whole("n", n, 32, 1 << 14, 32)
    rows = whole("rows", rows, 1, 32)
    element = whole("element", element, 4, 8, 4)
    sweeps = whole("sweeps", sweeps, 1, 1000)
    if n % rows:
        raise ValueError(f"n must be a multiple of rows (got {n} and {rows})")
    arrays = Arrays(a=n * n * element, b=n * n * element)
    across = n // 32
    last = np.array(n * n * element - 1)
    band, tile, within = np.unravel_index(np.arange(n * across), (n // rows, across, rows))
    row, column = band * rows + within, tile * 32

    def line(name: str, up: int, left: int, right: int) -> npt.NDArray[np.int64]:
        """The lines of a warp's elements, ``up`` rows below and wider by one on each side as asked."""
        first = np.maximum(column - left, 0)
        at = (np.clip(row + up, 0, n - 1) * n + first) * element
        size = (32 + left + right) * element
        return np.minimum(run(arrays.first[name], at, size), line_of(arrays.first[name], last))

    average = [read(line("a", 0, 1, 1)), read(line("a", -1, 0, 0)), read(line("a", 1, 0, 0))]
    kernels = [
        Kernel(32 * rows, [*average, write(line("b", 0, 0, 0))]),
        Kernel(32 * rows, [read(line("b", 0, 0, 0)), write(line("a", 0, 0, 0))]),
    ]
    return arrays.work(program(kernels * sweeps))


def gauss_seidel(
    rows: int = 1 << 17, entries: int = 20, band: int = 100, colours: int = 16, sweeps: int = 1
) -> Workload:
    """Sweeps of Gauss-Seidel over a sparse matrix, one colour of rows after the other, in place.

    As Kokkos Kernels does it on a GPU, which SC21 ran: rows are coloured (a thread a row, which reads its
    columns and the colours of these), the matrix is copied so that rows of a colour lie together (a thread a
    row), and then a kernel a colour updates x (16 lanes a row).  Each row has
    ``entries`` entries within ``band`` columns on each side.  Row r is of colour ``r % colours``, which
    stands for the colouring that Kokkos computes.
    """
    rows = whole("rows", rows, 32, 1 << 23, 32)
    entries = whole("entries", entries, 1, 1024)
    band = whole("band", band, 1, rows)
    colours = whole("colours", colours, 1, rows)
    sweeps = whole("sweeps", sweeps, 1, 1000)
    sizes = {"row_map": rows * 8 + 8, "columns": rows * entries * 4, "values": rows * entries * 8}
    arrays = Arrays(
        **sizes,
        **{f"{name}_by_colour": size for name, size in sizes.items()},
        colours=rows * 4,
        x=rows * 8,
        b=rows * 8,
    )
    places = _by_colour(rows, colours)

    def of(name: str, at: npt.NDArray[Any], bytes_each: int, rows_each: int = 1) -> npt.NDArray[np.int64]:
        """The lines of some rows of an array: int64[warps, lanes * k]."""
        lanes = run(arrays.first[name], at.reshape(-1) * bytes_each, bytes_each * rows_each)
        return lanes.reshape(len(at), -1)

    # places[c] is the first row of a colour; the order of rows by colour is what the copy reads.
    order = np.concatenate([np.arange(c, rows, colours) for c in range(colours)]).reshape(-1, 32)
    here = np.arange(rows).reshape(-1, 32)
    copy = [
        read(of("row_map", order, 8, 2)),
        read(of("columns", order, entries * 4), flags=OP_WAITS),
        read(of("values", order, entries * 8)),
        write(of("row_map_by_colour", here, 8, 2)),
        write(of("columns_by_colour", here, entries * 4), flags=0),
        write(of("values_by_colour", here, entries * 8), flags=0),
    ]
    near = np.clip(here[:, :, None] + np.linspace(-band, band, entries, dtype=np.int64), 0, rows - 1)
    colour_rows = [
        read(of("row_map", here, 8, 2)),
        read(of("columns", here, entries * 4), flags=OP_WAITS),
        read(of("colours", near.reshape(len(here), -1), 4), flags=OP_WAITS),
        write(of("colours", here, 4)),
    ]
    kernels = [Kernel(256, colour_rows), Kernel(256, copy)]
    for colour in range(colours):
        all_of_it = np.arange(colour, rows, colours)
        even = len(all_of_it) + len(all_of_it) % 2
        mine = np.concatenate((all_of_it, all_of_it[-1:]))[:even].reshape(-1, 2)
        at = places[mine % colours] + mine // colours
        near = mine[:, :, None] + np.linspace(-band, band, entries, dtype=np.int64)
        near = np.clip(near, 0, rows - 1)
        gathered = (places[near % colours] + near // colours).reshape(len(mine), -1)
        steps = [
            read(of("row_map_by_colour", at, 8, 2)),
            read(of("columns_by_colour", at, entries * 4), flags=OP_WAITS),
            read(of("values_by_colour", at, entries * 8)),
            read(of("x", gathered, 8), flags=OP_WAITS),
            read(of("b", at, 8)),
            write(of("x", at, 8)),
        ]
        kernels.append(Kernel(256, steps))
    return arrays.work(program(kernels[:2] + kernels[2:] * sweeps))


def _by_colour(rows: int, colours: int) -> npt.NDArray[np.int64]:
    """Return where the rows of each colour begin when those of a colour lie together."""
    counts = [len(range(colour, rows, colours)) for colour in range(colours)]
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)[:-1]))
