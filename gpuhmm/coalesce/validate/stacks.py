"""Rows of stacks built on HMM, and of times that were put in."""

from __future__ import annotations

from gpuhmm.coalesce.costs import COSTS
from gpuhmm.coalesce.validate.experiments import Runs
from gpuhmm.coalesce.validate.row import Row

_ICS24 = "ICS24, AMD SVM (arXiv 2405.06811)"


def unbatched_rows(runs: Runs) -> list[Row]:
    """Return the rows of duplicates where faults are not batched."""
    rows = []
    for pattern, size in (("stream", {"size": 96 << 20}), ("sgemm", {"n": 2048}), ("jacobi2d", {})):
        found = runs.run(pattern, size, driver="amdkfd").totals
        rows.append(
            Row(
                f"{pattern} under amdkfd: faults dropped as duplicates",
                "shape",
                f"{_ICS24}: 97 to 99 %",
                "of raw faults",
                0.98,
                found["filtered"] / max(found["raw"], 1),
                0.95,
                1.0,
            )
        )
    return rows


def calibrated_rows() -> list[Row]:
    """Return what was put in: the times of one page and of one batch in each calibration, in µs."""
    rows = []
    for name, published, unit, model in (
        ("sc21-titan-v", 40 + 0.68 * 1024, "µs for a batch of 256 pages", _batch_us("sc21-titan-v", 256)),
        ("specasync-t4", 86.0, "µs for a batch of 32 pages", _batch_us("specasync-t4", 32)),
        ("far-fault-45us", 45.0, "µs a fault", _batch_us("far-fault-45us", 1)),
        ("mi300a", 17.0, "µs a fault", _batch_us("mi300a", 1)),
    ):
        rows.append(
            Row(
                f"time of {name}",
                "calibrated",
                COSTS[name].source.split(":")[0],
                unit,
                published,
                model,
                0,
                1e9,
            )
        )
    return rows


def _batch_us(name: str, pages: int) -> float:
    """Return what a batch of that many pages of one VA block takes."""
    costs = COSTS[name]
    fixed = costs.interrupt + costs.read_put + costs.batch + costs.block + costs.replay
    return (fixed + pages * (costs.fetch + costs.preprocess + costs.walk + costs.page)) / 1000
