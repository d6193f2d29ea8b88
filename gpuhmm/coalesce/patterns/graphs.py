"""Breadth-first search over a generated graph, level by level."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from gpuhmm.coalesce.access import ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.device.config import WARP_LANES
from gpuhmm.coalesce.device.program import OP_WAITS, Program
from gpuhmm.coalesce.patterns.grid import offsets
from gpuhmm.coalesce.patterns.parameters import flag, whole
from gpuhmm.coalesce.patterns.program_areas import Arrays, Workload
from gpuhmm.kernels.compile_cache import cached

#: Accesses that a search may have: pages of all lanes apart need that much memory.
_MOST = 1 << 27
_NOT_YET = np.int32(1 << 30)


def bfs(scale: int = 15, degree: int = 16, rmat: int = 1, block: int = 256, seed: int = 1) -> Workload:
    """Breadth-first search from the vertex with most edges; a kernel a level, a thread a vertex.

    2^``scale`` vertices with ``degree`` edges each on the average: ``rmat`` 1 for R-MAT with the
    probabilities of Graph500 (0.57, 0.19, 0.19, 0.05), 0 for ends by equal chance.  Every thread reads the
    level of its vertex (int32); those of the frontier read where their edges begin and end (int64), then edge
    by edge (int32) the level of the neighbour, which they write where it has none.
    """
    scale = whole("scale", scale, 5, 24)
    degree = whole("degree", degree, 1, 256)
    block = whole("block", block, WARP_LANES, 1024, WARP_LANES)
    starts, ends = graph(scale, degree, flag("rmat", rmat), whole("seed", seed, 0, 1 << 62))
    vertices = 1 << scale
    arrays = Arrays(offsets=(vertices + 1) * 8, edges=len(ends) * 4, levels=vertices * 4)
    levels = search(starts, ends, int(np.argmax(np.diff(starts))))
    depth = int(levels[levels < _NOT_YET].max()) + 1
    firsts = np.array([arrays.first[name] for name in ("offsets", "edges", "levels")], dtype=np.int64)
    none = np.zeros(0, dtype=np.int64)
    counted = fill_search(
        starts, ends, levels, depth, firsts, none, none.astype(np.uint8), none, none.astype(np.uint32), False
    )
    if max(counted) > _MOST:
        raise ValueError(
            f"a search must have at most 2^27 accesses: give a smaller graph (got {max(counted)})"
        )
    warps = vertices // WARP_LANES * depth
    warp_ops = np.zeros(warps, dtype=np.int64)
    kind = np.zeros(counted[0], dtype=np.uint8)
    op_pages = np.zeros(counted[0], dtype=np.int64)
    pages = np.zeros(counted[1], dtype=np.uint32)
    fill_search(starts, ends, levels, depth, firsts, warp_ops, kind, op_pages, pages, True)
    in_block = block // WARP_LANES
    blocks = -(-(vertices // WARP_LANES) // in_block)
    last = vertices // WARP_LANES - (blocks - 1) * in_block
    return arrays.work(
        Program(
            kernel_blocks=np.arange(depth + 1, dtype=np.int64) * blocks,
            kernel_threads=np.full(depth, block, dtype=np.int64),
            kernel_residency=np.zeros(depth, dtype=np.int64),
            block_warps=offsets(np.tile(np.append(np.full(blocks - 1, in_block), last), depth)),
            warp_ops=offsets(warp_ops),
            op_pages=offsets(op_pages),
            op_access=kind & np.uint8(15),
            op_flags=kind >> np.uint8(4),
            pages=pages,
        )
    )


def graph(
    scale: int, degree: int, rmat: bool, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return a graph as rows of edges: where those of each vertex begin, int64[n + 1], and their ends."""
    chance = np.random.default_rng(seed)
    count = degree << scale
    if rmat:
        rows, columns = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        for _ in range(scale):
            quarter = np.searchsorted([0.57, 0.76, 0.95], chance.random(count), side="right")
            rows, columns = rows * 2 + (quarter >> 1), columns * 2 + (quarter & 1)
        names = chance.permutation(1 << scale)
        rows, columns = names[rows], names[columns]
    else:
        rows, columns = chance.integers(0, 1 << scale, (2, count))
    order = np.argsort(rows, kind="stable")
    return offsets(np.bincount(rows, minlength=1 << scale)), columns[order].astype(np.int32)


def _search(starts, ends, root):
    """Return the level of each vertex, _NOT_YET where the search does not come."""
    levels = np.full(len(starts) - 1, _NOT_YET, dtype=np.int32)
    queue = np.empty(len(starts) - 1, dtype=np.int64)
    queue[0] = root
    levels[root] = 0
    head, tail = 0, 1
    while head < tail:
        vertex = queue[head]
        head += 1
        for edge in range(starts[vertex], starts[vertex + 1]):
            other = ends[edge]
            if levels[other] == _NOT_YET:
                levels[other] = levels[vertex] + 1
                queue[tail] = other
                tail += 1
    return levels


@njit
def _add(lanes, count, line):
    """Add a line to those of an access unless it is there; return how many there are."""
    for at in range(count):
        if lanes[at] == line:
            return count
    lanes[count] = line
    return count + 1


@njit
def _emit(state, lanes, count, what, kind, op_pages, pages, store):
    """Append an access with its pages."""
    if store:
        kind[state[0]] = what
        op_pages[state[0]] = count
        for at in range(count):
            pages[state[1] + at] = lanes[at] >> 5
    state[0] += 1
    state[1] += count


def _fill_search(starts, ends, levels, depth, firsts, warp_ops, kind, op_pages, pages, store):
    """Go through all levels as the threads do; return how many accesses and pages there are.

    With ``store`` they are stored, too.
    """
    state = np.zeros(2, dtype=np.int64)
    lanes = np.zeros(2 * WARP_LANES, dtype=np.int64)
    written = np.zeros(WARP_LANES, dtype=np.int64)
    waits = OP_WAITS << 4
    warps = len(levels) // WARP_LANES
    for level in range(depth):
        for warp in range(warps):
            before = state[0]
            first = warp * WARP_LANES
            lanes[0] = firsts[2] * 32 + (first * 4 >> 7)
            _emit(state, lanes, 1, ACCESS_READ, kind, op_pages, pages, store)
            most = 0
            count = 0
            for vertex in range(first, first + WARP_LANES):
                if levels[vertex] == level:
                    count = _add(lanes, count, firsts[0] * 32 + (vertex * 8 >> 7))
                    count = _add(lanes, count, firsts[0] * 32 + ((vertex + 1) * 8 >> 7))
                    most = max(most, starts[vertex + 1] - starts[vertex])
            if count > 0:
                _emit(state, lanes, count, ACCESS_READ | waits, kind, op_pages, pages, store)
            for turn in range(most):
                count = 0
                for vertex in range(first, first + WARP_LANES):
                    edge = starts[vertex] + turn
                    if levels[vertex] == level and edge < starts[vertex + 1]:
                        count = _add(lanes, count, firsts[1] * 32 + (edge * 4 >> 7))
                _emit(state, lanes, count, ACCESS_READ | waits, kind, op_pages, pages, store)
                count = 0
                fresh = 0
                for vertex in range(first, first + WARP_LANES):
                    edge = starts[vertex] + turn
                    if levels[vertex] == level and edge < starts[vertex + 1]:
                        line = firsts[2] * 32 + (np.int64(ends[edge]) * 4 >> 7)
                        count = _add(lanes, count, line)
                        if levels[ends[edge]] == level + 1:
                            fresh = _add(written, fresh, line)
                _emit(state, lanes, count, ACCESS_READ | waits, kind, op_pages, pages, store)
                if fresh > 0:
                    _emit(state, written, fresh, ACCESS_WRITE | waits, kind, op_pages, pages, store)
            if store:
                warp_ops[level * warps + warp] = state[0] - before
    return state[0], state[1]


search = cached(njit(_search))
fill_search = cached(njit(_fill_search))
