"""Rows of SC21: Allen and Ge, "In-Depth Analyses of Unified Virtual Memory System for GPU Accelerated
Computing".

They measured on a Titan V with driver 460.27.04.  What its tables 2 and 3 call faults of a batch is taken for
what is left after merging at the fetch: for sgemm of 16384 that is 68, while the artifact's figures give 175
raw faults and 22 different pages.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuhmm.coalesce.validate.experiments import Runs
from gpuhmm.coalesce.validate.row import Row, exact, within_factor

_SC21 = "SC21"
_LOG = "SC21's artifact, recorded log"
_FIGURE = "SC21's artifact, read off a figure"

#: The sizes at which SC21 ran each pattern, as far as the model can: powers of two, the first blocks of a
#: large product, and no more than MAX_BATCHES batches of each.
SIZES: dict[str, dict[str, Any]] = {
    "regular": {"pages": 1 << 20},
    "random": {"pages": 1 << 20},
    "sgemm": {"n": 16384, "blocks": 640},
    "stream": {"size": 750_004_224},
    "cufft": {"points": 1 << 26},
    "gauss-seidel": {"rows": 1 << 20},
    "hpgmg": {"box": 128, "boxes": 8},
}
MAX_BATCHES = 3000

#: Table 2: faults a batch for each of the 80 SMs.  Table 3: VA blocks a batch, faults a VA block.
TABLES = {
    "regular": (3.06, 41.27, 5.93),
    "random": (3.03, 233.09, 1.04),
    "sgemm": (0.85, 6.96, 9.81),
    "stream": (0.75, 3.93, 15.37),
    "cufft": (0.91, 25.14, 2.89),
    "gauss-seidel": (0.65, 2.31, 22.44),
    "hpgmg": (0.41, 2.39, 13.62),
}

#: The share of duplicates among the raw faults of sgemm by batch size.
DUPLICATES = {32: 0.685, 64: 0.79, 128: 0.84, 256: 0.87, 512: 0.875, 1024: 0.88}

_NO_PREFETCH: dict[str, object] = {"prefetch": False}


def limit_rows(runs: Runs) -> list[Row]:
    """Return the rows of limits: batches, µTLBs, faults an SM."""
    add = runs.run("vector-add", settings=_NO_PREFETCH)
    ahead = runs.run("vector-add", {"pages": 128, "block": 128, "prefetch": 1}, settings=_NO_PREFETCH)
    spread = runs.run("random", SIZES["random"], settings=_NO_PREFETCH, max_batches=200)
    recorded = [56, 8, 32]
    raw = add.batches["raw"].tolist()
    same = sum(a == b for a, b in zip(raw, recorded, strict=False)) if len(raw) == len(recorded) else 0
    return [
        exact("largest batch", _SC21, "faults", 256, float(spread.batches["raw"].max())),
        exact("first batch of one warp: a µTLB's limit", _SC21, "faults", 56, float(raw[0])),
        exact("batches of one warp's vector add: 56, 8, 32", _LOG, "batches equal", 3, same),
        exact("first batch with prefetch.global.L2", _SC21, "faults", 256, float(ahead.batches["raw"][0])),
        exact("most faults an SM and batch, 80 SMs", _SC21, "faults", 3.2, spread.batches["raw"].max() / 80),
    ]


def table_rows(runs: Runs) -> list[Row]:
    """Return the rows of tables 2 and 3, and of the order of the patterns in table 3."""
    rows = []
    blocks = []
    for pattern, (of_sm, blocks_of_batch, faults_of_block) in TABLES.items():
        run = runs.run(pattern, SIZES[pattern], settings=_NO_PREFETCH, max_batches=MAX_BATCHES)
        found = run.totals
        blocks.append(found["blocks_per_batch"])
        for name, table, unit, published, model in (
            ("faults an SM and batch", "2", "faults", of_sm, found["coalesced_per_batch"] / 80),
            ("VA blocks a batch", "3", "VA blocks", blocks_of_batch, found["blocks_per_batch"]),
            ("faults a VA block", "3", "faults", faults_of_block, found["faults_per_block"]),
        ):
            reason = REASONS.get((pattern, name), "")
            source = f"{_SC21}, table {table}"
            rows.append(within_factor(f"{pattern}: {name}", source, unit, published, model, reason=reason))
    published_order = np.argsort(np.argsort([row[1] for row in TABLES.values()]))
    order = np.argsort(np.argsort(blocks))
    rank = float(np.corrcoef(published_order, order)[0, 1])
    rows.append(
        Row(
            "order of the patterns by VA blocks a batch",
            "shape",
            f"{_SC21}, table 3",
            "rank correlation",
            1.0,
            rank,
            0.8,
            1.0,
            REASONS["all", "order"],
        )
    )
    return rows


def size_rows(runs: Runs) -> list[Row]:
    """Return the rows of what the batch size changes."""
    found = {}
    for batch in (32, 64, 128, 256, 512, 1024, 6144):
        settings = {**_NO_PREFETCH, "batch": batch}
        found[batch] = runs.run("sgemm", SIZES["sgemm"], settings=settings, max_batches=300).totals
    rows = [
        Row(
            f"sgemm: duplicates at batch size {batch}",
            "shape",
            _FIGURE,
            "of raw faults",
            share,
            found[batch]["duplicates"],
            share - 0.1,
            share + 0.1,
            REASONS.get(("sgemm", f"duplicates {batch}"), ""),
        )
        for batch, share in DUPLICATES.items()
    ]
    gain = found[6144]["unique_per_batch"] / found[1024]["unique_per_batch"]
    plateau = max(
        runs.run(pattern, SIZES[pattern], settings={**_NO_PREFETCH, "batch": 6144}, max_batches=60).totals[
            "unique_per_batch"
        ]
        for pattern in TABLES
    )
    return [
        *rows,
        within_factor(
            "sgemm: raw faults a batch at batch size 1024",
            _FIGURE,
            "faults",
            209,
            found[1024]["raw_per_batch"],
        ),
        Row(
            "sgemm: unique faults a batch, 6144 over 1024",
            "shape",
            f"{_SC21}: no change above 1024",
            "ratio",
            1.0,
            gain,
            0.9,
            1.1,
        ),
        within_factor(
            "unique faults a batch at batch size 6144, most of any pattern",
            f"{_SC21}: levels off near 500",
            "faults",
            500,
            plateau,
            reason=REASONS["all", "plateau"],
        ),
    ]


def prefetch_rows(runs: Runs) -> list[Row]:
    """Return the row of what the prefetch tree saves."""
    size = {"n": 4096}
    without = len(runs.run("sgemm", size, settings=_NO_PREFETCH).batches)
    with_tree = len(runs.run("sgemm", size, settings={"prefetch": True}).batches)
    return [
        Row(
            "sgemm: batches that prefetching saves",
            "shape",
            _SC21,
            "of batches",
            0.93,
            1 - with_tree / without,
            0.83,
            1.0,
        )
    ]


_FFT = (
    "each warp of the modelled stages has a page of its own, so that nothing merges and every batch is full; "
    "cuFFT's kernels are not public"
)
_SWEEP = (
    "the sweep walks the matrix, its copy by colours and both vectors at once; the colouring stands in for "
    "that of Kokkos, and SC21 does not say which of the program's kernels it counted"
)
_INTERLEAVED = (
    "µTLBs take turns at the modelled GMMU, so that few of a page's faults lie close together in the buffer"
)

#: Why a row of the model differs, as far as that is known or likely; shown where one fails.
REASONS: dict[tuple[str, str], str] = {
    ("cufft", "faults an SM and batch"): _FFT,
    ("cufft", "VA blocks a batch"): _FFT,
    ("gauss-seidel", "VA blocks a batch"): _SWEEP,
    ("gauss-seidel", "faults a VA block"): _SWEEP,
    ("hpgmg", "faults an SM and batch"): (
        "NVIDIA's program runs coarse levels on the CPU, which empties batches; all levels of the model run "
        "on the GPU"
    ),
    ("all", "order"): "gauss-seidel has too many VA blocks, see there",
    ("sgemm", "duplicates 32"): _INTERLEAVED,
    ("sgemm", "duplicates 64"): _INTERLEAVED,
    ("all", "plateau"): (
        "the model lets every µTLB have 56 faults outstanding, 2240 in all, and a batch of the random "
        "pattern finds what came while the one before was served; hardware seems to hold fewer"
    ),
}
