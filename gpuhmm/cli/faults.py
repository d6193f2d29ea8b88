"""``gpuhmm faults``: what it costs a kernel to serve a device's faults, by how its driver asks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhmm.cli.parameters import kernel_name
from gpuhmm.cli.tables import print_table

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
        str, typer.Option(help="Pages of one range of the driver, powers of two with commas.")
    ] = "1,16,64,512,4096",
    whole_ranges: Annotated[
        bool, typer.Option("--whole-ranges", help="Ask for every page of a range, not for the touched ones.")
    ] = False,
    kernel: Annotated[
        str, typer.Option(parser=kernel_name, metavar="NAME", help="Whose rules: v5.18 to v7.3.")
    ] = "v6.1",
    backend: Annotated[str, typer.Option(help="What walks: cpu, reference, cuda or auto.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Seed of random:N.")] = 0,
    picture: Annotated[
        Path | None, typer.Option(help="Draw it (.png, .svg, .pdf); needs matplotlib.")
    ] = None,
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
    from gpuhmm.results.figure import picture_suffix

    info = resolve_backend(backend)
    if request not in ("read", "write", "both"):
        raise typer.BadParameter(f"--request must be read, write or both (got {request!r})")
    if layout not in LAYOUTS:
        raise typer.BadParameter(f"--layout must be one of {', '.join(LAYOUTS)} (got {layout!r})")
    sizes = _sizes(range_pages)
    if picture is not None:
        picture_suffix(picture)
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
        for size in sizes
    ]
    title = f"{LAYOUTS[layout].words}; {pages:,} pages, touched: {touch}"
    if picture is not None:
        from gpuhmm.coalesce.fault_picture import draw_fault_costs

        draw_fault_costs(picture, costs, title)
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
    if not all(size.isdigit() and int(size).bit_count() == 1 for size in sizes):
        raise typer.BadParameter(f"--range-pages must be powers of two with commas between (got {text!r})")
    return [int(size) for size in sizes]


def _print(costs: list[FaultCosts], title: str, how: str) -> None:
    from rich.table import Table

    from gpuhmm.results.byte_size import byte_size

    typer.echo(f"{title}\n{how}\n")
    table = Table(box=None, pad_edge=False)
    columns = ("range", "ranges", "faults", "unasked", "a page", "retries", "walks", "invalidations")
    table.add_column("request", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for one in costs:
        table.add_row(
            one.request,
            byte_size(one.range_pages << 12),
            f"{one.ranges:,}",
            f"{one.faults:,}",
            f"{one.unasked:,}",
            f"{one.faults / max(one.touched, 1):.1f}",
            f"{one.retries:,}",
            f"{one.walks:,}",
            f"{one.invalidations:,}",
        )
    console = print_table(table)
    console.print(
        "\nrange: bytes of one range; unasked: faults at pages that nobody asked for;\n"
        "a page: faults for each page touched; retries: calls of hmm_range_fault that returned -EBUSY",
        soft_wrap=True,
    )
