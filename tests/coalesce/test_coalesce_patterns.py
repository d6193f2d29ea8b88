"""Access patterns: each touches and writes exactly the pages that its kernel does."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from coalesce_driver import serve

from gpuhmm.coalesce.device.config import DEVICES
from gpuhmm.coalesce.device.gpu import Gpu
from gpuhmm.coalesce.device.program import Program
from gpuhmm.coalesce.patterns import PATTERNS, Workload, workload
from gpuhmm.coalesce.patterns.graphs import graph

SMALL: dict[str, dict[str, int]] = {
    "vector-add": {"pages": 70, "block": 48},
    "stream": {"size": 3 << 20},
    "regular": {"pages": 700},
    "random": {"pages": 700},
    "strided": {"pages": 700, "stride": 9},
    "sgemm": {"n": 256},
    "jacobi2d": {"n": 256},
    "gauss-seidel": {"rows": 4096, "colours": 5},
    "cufft": {"points": 1 << 15},
    "hpgmg": {"box": 16, "boxes": 2},
    "bfs": {"scale": 11, "degree": 4},
}


def pages_of(work: Workload, name: str, offsets: Any) -> set[int]:
    """The numbers of the pages of some bytes of an array."""
    at = work.names.index(name)
    found = work.areas.firsts[at] + (np.asarray(offsets, dtype=np.int64).reshape(-1) >> 12)
    assert (found < work.areas.firsts[at + 1]).all()
    return set(found.tolist())


def whole_arrays(work: Workload, names: str) -> set[int]:
    """The numbers of all pages of some arrays."""
    found: set[int] = set()
    for name in names.split():
        at = work.names.index(name)
        found |= set(range(int(work.areas.firsts[at]), int(work.areas.firsts[at + 1])))
    return found


def numbers(marked: Any) -> set[int]:
    return set(np.flatnonzero(marked).tolist())


def ops_of(program: Program, warp: int) -> list[tuple[int, list[int]]]:
    """The accesses of a warp: kind and pages."""
    return [
        (int(program.op_access[op]), program.pages[program.op_pages[op] : program.op_pages[op + 1]].tolist())
        for op in range(program.warp_ops[warp], program.warp_ops[warp + 1])
    ]


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_runs_to_its_end(name: str) -> None:
    work = workload(name, **SMALL[name])
    work.program.check(work.areas.npages)
    device = Gpu(DEVICES["titan-v"], work.program, work.areas)
    serve(device)
    assert device.done()
    assert device.stalled() == 0
    assert (work.areas.entries != 0).tolist() == work.touched().tolist()
    assert device.counters.accesses == len(work.program.pages)


@pytest.mark.parametrize("name", PATTERNS)
def test_arrays_begin_at_blocks(name: str) -> None:
    work = workload(name, **SMALL[name])
    assert (work.areas.starts % np.uint64(2 << 20) == 0).all()
    assert int(work.areas.starts[0]) == 1 << 40
    assert len(work.names) == len(work.areas.areas)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("vector-add", "c"),
        ("stream", "a"),
        ("sgemm", "c"),
        ("jacobi2d", "a b"),
        ("gauss-seidel", "row_map_by_colour columns_by_colour values_by_colour colours x"),
        ("cufft", "signal filter"),
    ],
)
def test_all_of_these_arrays_is_touched_and_some_written(name: str, written: str) -> None:
    work = workload(name, **SMALL[name])
    assert numbers(work.touched()) == whole_arrays(work, " ".join(work.names))
    assert numbers(work.written()) == whole_arrays(work, written)


def test_one_page_a_thread_in_order() -> None:
    pages = workload("regular", pages=700).program.pages
    assert pages.tolist() == list(range(700))
    pages = workload("random", pages=700).program.pages
    assert sorted(pages.tolist()) == list(range(700))
    assert pages.tolist() != list(range(700))
    assert pages.tolist() != workload("random", pages=700, seed=2).program.pages.tolist()
    pages = workload("strided", pages=10, stride=4).program.pages
    assert pages.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 3, 7]
    program = workload("regular", pages=700, block=40).program
    assert np.diff(program.op_pages)[:4].tolist() == [32, 8, 32, 8]


def test_a_warp_of_stream_asks_for_lines() -> None:
    program = workload("stream", size=3 << 20).program
    # 32 doubles are two lines of 128 bytes; b, c, then a.
    assert ops_of(program, 0) == [(1, [256, 256]), (1, [512, 512]), (2, [0, 0])]
    assert ops_of(program, 16) == [(1, [257, 257]), (1, [513, 513]), (2, [1, 1])]
    assert len(workload("stream", size=3 << 20, repeats=2).program.kernel_threads) == 2


@pytest.mark.parametrize("n", [256, 1024])
def test_tiles_of_sgemm_read_their_rows_and_columns(n: int) -> None:
    work = workload("sgemm", n=n, blocks=3)
    program = work.program
    for block in range(3):
        row, column = block % (n // 128) * 128, block // (n // 128) * 128
        inside, k = np.arange(128), np.arange(n)
        wanted = {
            "a": pages_of(work, "a", (k[:, None] * n + row + inside) * 4),
            "b": pages_of(work, "b", ((column + inside[:, None]) * n + k) * 4),
            "c": pages_of(work, "c", ((column + inside[:, None]) * n + row + inside) * 4),
        }
        ops = [op for warp in range(block * 8, block * 8 + 8) for op in ops_of(program, warp)]
        assert {page for kind, pages in ops for page in pages if kind == 1} == wanted["a"] | wanted["b"]
        assert {page for kind, pages in ops for page in pages if kind == 2} == wanted["c"]
    # Every warp comes to as many barriers as there are steps of k after the first.
    for warp in range(24):
        ops_range = slice(int(program.warp_ops[warp]), int(program.warp_ops[warp + 1]))
        assert int((program.op_flags[ops_range] == 2).sum()) == n // 8 - 1


def test_a_warp_of_jacobi2d_reads_its_neighbours() -> None:
    n = 256
    work = workload("jacobi2d", n=n, element=8, sweeps=1)
    program = work.program
    first = [ops_of(program, warp) for warp in range(n * n // 32)]
    seen = set()
    for warp, ops in enumerate(first):
        tile, row_in_tile = divmod(warp, 8)
        row, column = tile // 8 * 8 + row_in_tile, tile % 8 * 32
        lanes = column + np.arange(32)
        wanted = set()
        for up, aside in [(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)]:
            at = np.clip(row + up, 0, n - 1) * n + lanes + aside
            wanted |= pages_of(work, "a", np.clip(at, 0, n * n - 1) * 8)
        if 0 < column < n - 32:
            assert {page for kind, pages in ops for page in pages if kind == 1} == wanted
        assert {page for kind, pages in ops for page in pages if kind == 2} == pages_of(
            work, "b", (row * n + lanes) * 8
        )
        seen.add((row, column))
    assert len(seen) == n * n // 32


def test_gauss_seidel_reads_x_of_its_band() -> None:
    rows, band, colours = 4096, 100, 5
    work = workload("gauss-seidel", rows=rows, band=band, colours=colours, entries=20)
    program = work.program
    # The last kernels update x: warps of two rows of one colour.
    warp = int(program.block_warps[program.kernel_blocks[2]])
    starts = np.cumsum([0] + [len(range(c, rows, colours)) for c in range(colours)])
    for number, mine in enumerate([[0, 5], [10, 15]]):
        offsets = []
        for row in mine:
            for distance in np.linspace(-band, band, 20).astype(np.int64):
                near = int(np.clip(row + distance, 0, rows - 1))
                offsets.append((starts[near % colours] + near // colours) * 8)
        assert set(ops_of(program, warp + number)[3][1]) == pages_of(work, "x", offsets)


def test_the_first_pass_of_cufft_goes_in_strides() -> None:
    points = 1 << 17
    work = workload("cufft", points=points, radix=256)
    program = work.program
    in_block = 256 * 16 // 8 // 32
    for block in (0, 5):
        warps = range(block * in_block, (block + 1) * in_block)
        pages = sorted(page for warp in warps for _, each in ops_of(program, warp) for page in each)
        at = (np.arange(256)[:, None] * (points // 256) + block * 16 + np.arange(0, 16, 16)) * 8
        assert pages == sorted((at >> 12).reshape(-1).tolist())


def test_multigrid_touches_what_a_seven_point_stencil_does() -> None:
    box, boxes = 16, 2
    work = workload("hpgmg", box=box, boxes=boxes, coarsest=4)
    touched: set[int] = set()
    written: set[int] = set()
    for level, side in enumerate([16, 8, 4]):
        span = side + 2
        cell = np.array(list(itertools.product(range(boxes), range(side), range(side), range(side))))

        def at(dk: int, dj: int, di: int, cell: Any = cell, span: int = span) -> Any:
            b, k, j, i = cell.T
            return (((b * span + k + dk + 1) * span + j + dj + 1) * span + i + di + 1) * 8

        here = at(0, 0, 0)
        around = [(0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
        for name in "ut":
            touched |= set().union(*(pages_of(work, f"{name}{level}", at(*by)) for by in around))
            written |= pages_of(work, f"{name}{level}", here)
        touched |= pages_of(work, f"f{level}", here) | pages_of(work, f"d{level}", here)
        written |= pages_of(work, f"f{level}", here) if level else set()
    assert numbers(work.touched()) == touched
    assert numbers(work.written()) == written


@pytest.mark.parametrize("rmat", [0, 1])
def test_a_search_touches_what_it_reaches(rmat: int) -> None:
    scale, degree = 11, 3
    work = workload("bfs", scale=scale, degree=degree, rmat=rmat, seed=3)
    starts, ends = graph(scale, degree, bool(rmat), 3)
    assert len(ends) == degree << scale
    root = int(np.argmax(np.diff(starts)))
    level, frontier, depth = {root: 0}, [root], 0
    while frontier:
        following = []
        depth += 1
        for vertex in frontier:
            for other in ends[starts[vertex] : starts[vertex + 1]].tolist():
                if other not in level:
                    level[other] = depth
                    following.append(other)
        frontier = following
    reached = np.array(sorted(level))
    assert work.program.kernels == depth
    edges = np.concatenate([np.arange(starts[v], starts[v + 1]) for v in reached])
    touched = pages_of(work, "levels", np.arange(1 << scale) * 4) | pages_of(work, "edges", edges * 4)
    touched |= pages_of(work, "offsets", reached * 8) | pages_of(work, "offsets", reached * 8 + 8)
    assert numbers(work.touched()) == touched
    assert numbers(work.written()) == pages_of(work, "levels", [v * 4 for v in level if v != root])


def test_graphs_have_the_shape_that_they_are_named_for() -> None:
    skewed, even = (np.diff(graph(12, 16, rmat, 1)[0]) for rmat in (True, False))
    assert skewed.max() > 200 > even.max()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("nothing", {}, "a pattern must be one of vector-add"),
        ("stream", {"sizes": 3}, "the parameters are size, block"),
        ("stream", {"size": "big"}, "size must be a whole number"),
        ("stream", {"block": 33}, "block must be within 32 and 1024, a multiple of 32"),
        ("sgemm", {"n": 100}, "n must be within 128"),
        ("sgemm", {"n": 16384}, "give fewer blocks"),
        ("cufft", {"points": 9999}, "points must be a power of two"),
        ("cufft", {"points": 8192, "radix": 1024}, "points must be at least 16384"),
        ("jacobi2d", {"n": 64, "rows": 7}, "n must be a multiple of rows"),
        ("strided", {"pages": 5, "stride": 6}, "stride must be within 1 and 5"),
        ("vector-add", {"prefetch": 2}, "prefetch must be 0 or 1"),
    ],
)
def test_bad_parameters_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        workload(name, **settings)


def test_parameters_must_be_whole_numbers() -> None:
    with pytest.raises(TypeError, match="pages must be a whole number"):
        workload("regular", pages=1.5)
    assert workload("regular", pages="64").areas.npages == 64


def test_the_registry_documents_every_pattern() -> None:
    for name, pattern in PATTERNS.items():
        assert pattern.summary.endswith((".", ":")) or len(pattern.summary) > 20, name
        assert set(SMALL[name]) <= set(pattern.parameters)
