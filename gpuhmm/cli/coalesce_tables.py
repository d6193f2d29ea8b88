"""What ``gpuhmm coalesce`` prints for people: drivers side by side, and the points of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuhmm.cli.tables import print_table

if TYPE_CHECKING:
    from gpuhmm.coalesce.experiment import Experiment
    from gpuhmm.coalesce.run import CoalesceRun
    from gpuhmm.coalesce.sweep import Sweep


@dataclass(frozen=True)
class _Row:
    """A row: its words, and what it shows: a name of the totals, or of the device with ``device.``."""

    words: str
    name: str
    kind: str = "count"
    #: Left out where it is 0 for every driver.
    rare: bool = False


_GROUPS = {
    "faults": (
        _Row("read from the buffer", "raw"),
        _Row("after merging", "coalesced"),
        _Row("different pages", "unique"),
        _Row("again, same µTLB", "same_utlb"),
        _Row("again, other µTLB", "cross_utlb"),
        _Row("page mapped already", "covered"),
        _Row("filtered", "filtered", rare=True),
        _Row("throttled", "throttled", rare=True),
        _Row("cancelled", "cancelled", rare=True),
        _Row("duplicates", "duplicates", "share"),
    ),
    "work": (
        _Row("batches", "batches"),
        _Row("faults a batch", "raw_per_batch", "mean"),
        _Row("VA blocks a batch", "blocks_per_batch", "mean"),
        _Row("faults a VA block", "faults_per_block", "mean"),
        _Row("hmm_range_fault", "hmm_calls"),
        _Row("handle_mm_fault", "handle_mm_faults"),
        _Row("-EBUSY", "ebusy"),
        _Row("stale afterwards", "read_retries"),
        _Row("invalidations", "invalidations", rare=True),
        _Row("pages they took", "invalidated_pages", rare=True),
    ),
    "pages": (
        _Row("asked for", "pages_asked"),
        _Row("mapped", "pages_mapped"),
        _Row("nobody asked for", "pages_unasked"),
        _Row("prefetched", "prefetched", rare=True),
    ),
    "device": (
        _Row("replays", "device.replays"),
        _Row("faults flushed", "flushed"),
        _Row("faults again", "device.refaults"),
        _Row("buffer full", "device.overflows"),
    ),
    "time, ms": (
        _Row("fetch", "fetch_ns", "ms"),
        _Row("preprocess", "preprocess_ns", "ms"),
        _Row("service", "service_ns", "ms"),
        _Row("flush and replay", "replay_ns", "ms"),
        _Row("from start to end", "model_ns", "ms"),
    ),
}


def print_runs(experiments: list[Experiment], runs: list[CoalesceRun]) -> None:
    """Print runs side by side, and under which conditions they were made."""
    from rich.table import Table

    from gpuhmm.coalesce.layouts import LAYOUTS
    from gpuhmm.coalesce.sources import is_pattern
    from gpuhmm.hmm.backends import resolve_backend

    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(run.driver, justify="right", no_wrap=True)
    for title, rows in _GROUPS.items():
        table.add_row(f"[bold]{title}[/bold]")
        for row in rows:
            values = [_value(run, row.name) for run in runs]
            if not row.rare or any(values):
                table.add_row(f"  {row.words}", *(_cell(value, row.kind) for value in values))
    console = print_table(table)
    first, info = experiments[0], resolve_backend(experiments[0].backend)
    costs = runs[0].costs
    where = f" on {first.device}" if is_pattern(first.source) else ", a recorded trace"
    lines = [
        "",
        f"{first.source}{where}; memory before: {LAYOUTS[first.layout].words}; {first.kernel}",
        f"walked by the {info.name} back end ({info.device}); took {sum(run.seconds for run in runs):.3g} s",
        f"times by the cost model {costs.name}, not a prediction; {costs.source}",
    ]
    if first.cpu is not None:
        lines.append(f"the CPU meanwhile: {first.cpu} (operation, times a millisecond, pages)")
    lines += [f"rules of {run.driver}: {run.source}" for run in runs]
    lines += [f"{run.driver}: ended by --max-batches" for run in runs if not run.finished]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _value(run: CoalesceRun, name: str) -> float:
    if name == "model_ns":
        return run.model_ns
    owner, dot, field = name.partition(".")
    value: float = getattr(run.device, field) if dot else run.totals[owner]
    return value


def _cell(value: float, kind: str) -> str:
    if kind == "share":
        return f"{100 * value:.1f} %"
    if kind == "mean":
        return f"{value:,.2f}"
    if kind == "ms":
        return f"{value / 1e6:,.3f}"
    return f"{value:,}"


#: Points of a sweep that are printed; all are in its files.
_PRINTED = 64


def print_sweep(made: Sweep) -> None:
    """Print the first points of a sweep, a row each."""
    from rich.table import Table

    from gpuhmm.coalesce.axes import value_words

    table = Table(box=None, pad_edge=False)
    shown = {
        "batches": ("batches", "count"),
        "faults": ("raw", "count"),
        "duplicates": ("duplicates", "share"),
        "hmm calls": ("hmm_calls", "count"),
        "mm faults": ("handle_mm_faults", "count"),
        "unasked": ("pages_unasked", "count"),
        "buffer full": ("device_overflows", "count"),
        "model ms": ("model_ns", "ms"),
    }
    for name in (*made.axes, *shown):
        table.add_column(name, justify="right", no_wrap=True)
    words = {name: dict(zip(values, value_words(values), strict=True)) for name, values in made.axes.items()}
    for row in made.rows[:_PRINTED]:
        cells = [_cell(row[name], kind) if name in row else "-" for name, kind in shown.values()]
        table.add_row(*(words[name][row[name]] for name in made.axes), *cells)
    console = print_table(table)
    if len(made.rows) > _PRINTED:
        console.print(f"and {len(made.rows) - _PRINTED:,} more; --out writes them all")
    for row in made.rows:
        text = row.get("livelock")
        if text:
            where = ", ".join(f"{name}={row[name]}" for name in made.axes)
            console.print(f"{where}: {text}", markup=False, soft_wrap=True)
    costs = made.experiment.costs_of()
    console.print(
        f"model time by the cost model {costs.name}, not a prediction", markup=False, soft_wrap=True
    )
