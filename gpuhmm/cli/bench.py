"""``gpuhmm bench``: how fast walks are, compared with copies and fills of the same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhmm.cli.tables import print_table

if TYPE_CHECKING:
    from gpuhmm.bench.report import BenchReport
    from gpuhmm.bench.timing import Peers, Row

_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _size(text: str) -> int:
    """Return bytes of address space, a multiple of 2 MiB, written as 64MiB or 1TiB."""
    match = re.fullmatch(r"(\d+)\s*(|[KMGT]iB)", text.strip())
    if not match:
        raise typer.BadParameter(f"a size must be a number with KiB, MiB, GiB or TiB (got {text!r})")
    size = int(match[1]) * _UNITS[match[2]]
    if not size or size % (1 << 21):
        raise typer.BadParameter(f"a size must be a multiple of 2 MiB (got {text})")
    return size


def bench(
    workloads: Annotated[
        list[str] | None, typer.Argument(help="Workloads; all without any. --list names them.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Back end to time; may be given more than once.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="Address space walked in one call, such as 4GiB; may be given more than once."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each call is made.")] = 7,
    snapshot: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A snapshot of a process or a dump, walked as well."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the results to this .json, and a picture next to it.")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="A walk written without this package, timed as well: c.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the workloads and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare the time of walks with that of loops that move the same bytes and decide nothing.

    Each round times a call and then every way of its baseline: as numba makes it, with stores past the
    caches, and memcpy.  A ratio of 1 is the speed of the fastest.  Sizes that do not fit in the memory that
    is free are left out, and said so.
    """
    from gpuhmm.bench.c_peer import c_walk
    from gpuhmm.bench.picture import DRAWN, draw
    from gpuhmm.bench.report import as_json as to_json
    from gpuhmm.bench.report import report, write_json
    from gpuhmm.bench.timing import time_snapshot
    from gpuhmm.bench.workloads import WORKLOADS
    from gpuhmm.hmm.backends import resolve_backend

    known = [*WORKLOADS, *_EXTRA]
    if list_:
        typer.echo("\n".join(known))
        return
    for name in workloads or ():
        if name not in known:
            raise typer.BadParameter(f"a workload must be one of {', '.join(known)} (got {name!r})")
    for name in peer or ():
        if name != "c":
            raise typer.BadParameter(f"a peer must be c (got {name!r})")
    if out is not None and out.suffix != ".json":
        raise typer.BadParameter(f"--out must name a .json file (got {out})")
    backends = [resolve_backend(name) for name in backend or ["cpu"]]
    sizes = [_size(text) for text in size or ["2MiB", "64MiB", "1GiB", "16GiB", "256GiB"]]
    names = [info.name for info in backends]
    peers = {"C": c_walk()} if peer else {}
    rows = list(_rows(workloads or known, names, sizes, rounds, peers, quiet=as_json))
    if snapshot is not None:
        for name in names:
            rows += time_snapshot(snapshot, name, rounds)
    made = report(backends, rows)
    if out is not None:
        write_json(made, out)
        if any(row.workload == DRAWN for row in rows):
            draw(rows, out.with_suffix(".png"))
    if as_json:
        typer.echo(to_json(made), nl=False)
    else:
        _print(made)


#: What is measured besides the workloads: small ranges, alone and in batches; holes as runs; this process.
_EXTRA = ("small-ranges", "hole-as-runs", "live-process")


def _rows(
    wanted: list[str], backends: list[str], sizes: list[int], rounds: int, peers: Peers, quiet: bool
) -> Iterator[Row]:
    from rich.console import Console
    from rich.progress import Progress

    from gpuhmm.bench.report import available_bytes
    from gpuhmm.bench.timing import (
        time_hole_runs,
        time_live_process,
        time_pieces,
        time_small_ranges,
        time_workload,
    )
    from gpuhmm.bench.workloads import WORKLOADS

    extra = dict(zip(_EXTRA, (time_small_ranges, time_hole_runs, time_live_process), strict=True))
    messages = Console(stderr=True)
    with Progress(console=messages, transient=True, disable=quiet or not messages.is_terminal) as bar:
        task = bar.add_task("", total=len(wanted) * len(sizes))
        for name in wanted:
            bar.update(task, description=name)
            if name in _EXTRA:
                for backend in backends:
                    yield from extra[name](backend, rounds)
                bar.advance(task, len(sizes))
                continue
            workload = WORKLOADS[name]
            for size in sizes:
                npages = size >> 12
                needed = npages * workload.bytes_per_page
                if needed <= available_bytes() * 3 // 4:
                    yield from time_workload(workload, npages, backends, rounds, peers)
                elif workload.small_tables and "cpu" in backends:
                    yield time_pieces(workload, npages, "cpu")
                else:
                    text = f"{name} over {size >> 30} GiB left out: it needs {needed >> 20} MiB of memory"
                    messages.print(text, markup=False)
                bar.advance(task)


def _print(made: BenchReport) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("workload", "walker", "pages", "ms", "ns/page", "Mpages/s", "GB/s", "baseline", "ratio"):
        left = name in ("workload", "walker", "baseline")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row in made.rows:
        table.add_row(
            row.workload,
            row.walker,
            f"{row.pages:,}",
            f"{row.seconds * 1e3:.3f}",
            f"{row.seconds / row.pages * 1e9:.3g}",
            f"{row.pages_per_second / 1e6:.4g}",
            f"{row.bytes / row.seconds / 1e9:.1f}" if row.bytes else "",
            row.baseline or "",
            f"{row.ratio:.2f}" if row.ratio else "",
        )
    console = print_table(table)
    for name, device in made.devices.items():
        console.print(f"{name}: {device}", markup=False, soft_wrap=True)
    text = "ratio: median over the rounds of a call's time to that of the fastest baseline in the same round"
    console.print(text, soft_wrap=True)
