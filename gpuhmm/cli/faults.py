"""``gpuhmm faults``: what it costs a kernel to serve a device's faults, by how its driver asks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gpuhmm.coalesce.fault_costs import FaultCosts

_LAYOUT_HELP = (
    "What is there before: untouched, zero (read only so far), written, forked, private-file, shared-file; "
    "untouched-huge, zero-huge, written-huge, forked-huge."
)


def faults(
    layout: Annotated[str, typer.Option(help=_LAYOUT_HELP)] = "private-file",
    pages: Annotated[int, typer.Option(min=1, help="Pages of 4 KiB in the area.")] = 8192,
    touch: Annotated[
        str,
        typer.Option(help="What the device touches: all, every:N, random:N, first-of-pmd or last-of-pmd."),
    ] = "all",
    request: Annotated[str, typer.Option(help="What the driver asks for: read, write or both.")] = "both",
    range_pages: Annotated[
        str, typer.Option(help="Pages of one range of the driver, several with commas.")
    ] = "1,16,64,512,4096",
    whole_ranges: Annotated[
        bool, typer.Option("--whole-ranges", help="Ask for every page of a range, not for the touched ones.")
    ] = False,
    kernel: Annotated[str, typer.Option(help="Whose rules: v5.18 or v6.1.")] = "v6.1",
    backend: Annotated[str, typer.Option(help="What walks: cpu, reference, cuda or auto.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Seed of random:N.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Draw it into this file; needs matplotlib.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")] = False,
) -> None:
    """Count what serving a device's accesses costs: faults, pages nobody asked for, retries, invalidations.

    A device touches pages; its driver asks hmm_range_fault for them in aligned ranges, and tries again
    when its notifier was invalidated.  One missing PTE faults every page to the end of its 2 MiB, and a
    write request over read-only data invalidates the driver's own notifier about once for each 2 MiB:

        gpuhmm faults --layout untouched --touch first-of-pmd --request read
        gpuhmm faults --layout private-file --request both
    """
    from gpuhmm.coalesce.fault_costs import fault_costs
    from gpuhmm.coalesce.layouts import LAYOUTS
    from gpuhmm.hmm.backends import resolve_backend

    info = resolve_backend(backend)
    if request not in ("read", "write", "both"):
        raise typer.BadParameter(f"--request must be read, write or both (got {request!r})")
    if layout not in LAYOUTS:
        raise typer.BadParameter(f"--layout must be one of {', '.join(LAYOUTS)} (got {layout!r})")
    costs = [
        fault_costs(
            layout,
            pages,
            touch,
            one,
            size,
            whole_ranges=whole_ranges,
            kernel=kernel,
            backend=info.name,
            seed=seed,
        )
        for one in (("read", "write") if request == "both" else (request,))
        for size in _sizes(range_pages)
    ]
    title = f"{LAYOUTS[layout].words}; {pages:,} pages, touched: {touch}"
    if picture is not None:
        from gpuhmm.cli.picture import draw_fault_costs

        draw_fault_costs(costs, title, picture)
    if as_json:
        report = {
            "layout": layout,
            "pages": pages,
            "touch": touch,
            "whole_ranges": whole_ranges,
            "kernel": kernel,
            "backend": info.name,
            "device": info.device,
            "costs": [asdict(one) for one in costs],
        }
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(costs, title, f"{kernel}, {info.name} ({info.device})")
        if picture is not None:
            typer.echo(f"drawn: {picture}")


def _sizes(text: str) -> list[int]:
    sizes = [part.strip() for part in text.split(",")]
    if not all(size.isdigit() and int(size) for size in sizes):
        raise typer.BadParameter(f"--range-pages must be numbers of pages with commas between (got {text!r})")
    return [int(size) for size in sizes]


def _print(costs: list[FaultCosts], title: str, how: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.width = max(console.width, 100)  # a table that is cut tells nothing
    console.print(f"{title}\n{how}\n", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    columns = (
        "request",
        "range",
        "ranges",
        "faults",
        "unasked",
        "a page",
        "retries",
        "walks",
        "invalidations",
    )
    for name in columns:
        table.add_column(name, justify="left" if name == "request" else "right", no_wrap=True)
    for one in costs:
        counts = (one.ranges, one.faults, one.unasked)
        rest = (one.retries, one.walks, one.invalidations)
        table.add_row(
            one.request,
            _size(one.range_pages),
            *(f"{count:,}" for count in counts),
            f"{one.faults / max(one.touched, 1):.1f}",
            *(f"{count:,}" for count in rest),
        )
    console.print(table)
    console.print(
        "\nrange: bytes of one range; unasked: faults at pages that nobody asked for;\n"
        "a page: faults for each page touched; retries: calls of hmm_range_fault that returned -EBUSY",
        soft_wrap=True,
    )


def _size(pages: int) -> str:
    size = pages * 4
    for unit in ("KiB", "MiB", "GiB"):
        if size < 1024 or size % 1024:
            return f"{size:,} {unit}"
        size //= 1024
    return f"{size:,} TiB"
