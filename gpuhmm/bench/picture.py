"""A picture of a bench: pages a second against the size of the range, one line a walker."""

from __future__ import annotations

from pathlib import Path

from gpuhmm.bench.timing import Row
from gpuhmm.results.figure import new_figure, save_figure

#: The workload that is drawn: what all walkers can do.
DRAWN = "dense-4k"


def draw(rows: list[Row], path: Path) -> None:
    """Draw the rows into ``path``; suffixes and errors as of :mod:`gpuhmm.results.figure`.

    ValueError if no row of the drawn workload is there.
    """
    chosen = [row for row in rows if row.workload == DRAWN]
    if not chosen:
        raise ValueError(f"a picture shows the workload {DRAWN}, which was not measured")
    figure = new_figure(8, 5, layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    for walker in dict.fromkeys(row.walker for row in chosen):
        points = sorted((row.pages, row.pages_per_second) for row in chosen if row.walker == walker)
        axes.plot(*zip(*points, strict=True), marker="o", label=walker)
    limit = sorted((row.pages, row.pages / row.baseline_seconds) for row in chosen if row.baseline_seconds)
    best = {pages: max(rate for at, rate in limit if at == pages) for pages, _ in limit}
    axes.plot(list(best), list(best.values()), color="black", linestyle="--", label="copy of the same bytes")
    axes.set_xlabel("pages of 4 KiB in the range")
    axes.set_ylabel("pages per second")
    axes.set_title(f"hmm_range_fault(), {DRAWN}, a snapshot")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    save_figure(figure, path)
