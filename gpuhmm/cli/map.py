"""``gpuhmm map``: a picture of an address space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpuhmm.cli.parameters import address, number, one_of
from gpuhmm.cli.source import (
    CR3_HELP,
    DUMP_HELP,
    END_HELP,
    LEVELS_HELP,
    MAPS_HELP,
    PID_HELP,
    SNAPSHOT_HELP,
    START_HELP,
    STOP_HELP,
    Kernel,
    Source,
)
from gpuhmm.hmm.backends import BACKENDS

_BACKENDS = ("auto", *BACKENDS)


def draw_map(
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture: .png, .svg or .pdf.")],
    snapshot: Annotated[Path | None, typer.Argument(help=SNAPSHOT_HELP)] = None,
    pid: Annotated[int | None, typer.Option(min=1, help=PID_HELP)] = None,
    dump: Annotated[Path | None, typer.Option(help=DUMP_HELP)] = None,
    cr3: Annotated[int | None, typer.Option(parser=number, metavar="NUMBER", help=CR3_HELP)] = None,
    levels: Annotated[int | None, typer.Option(min=4, max=5, help=LEVELS_HELP)] = None,
    maps: Annotated[Path | None, typer.Option(help=MAPS_HELP)] = None,
    kernel: Kernel = None,
    start: Annotated[int | None, typer.Option(parser=address, metavar="ADDRESS", help=START_HELP)] = None,
    end: Annotated[int | None, typer.Option(parser=address, metavar="ADDRESS", help=END_HELP)] = None,
    strips: Annotated[int, typer.Option(min=1, max=100, help="Stretches that are shown at most.")] = 24,
    backend: Annotated[
        str, typer.Option(parser=one_of(*_BACKENDS), metavar="|".join(_BACKENDS), help="What walks.")
    ] = "auto",
    stop: Annotated[bool, typer.Option("--stop", help=STOP_HELP)] = False,
) -> None:
    """Draw a process, a dump or a snapshot: areas, and what their pages are, at any scale.

    The address space is cut at its largest gaps; each stretch is a strip with a scale of its own.
    """
    from rich.console import Console

    from gpuhmm.capture import walk_capture
    from gpuhmm.results.figure import picture_suffix
    from gpuhmm.results.map import draw
    from gpuhmm.results.strips import strips_of

    picture_suffix(out)
    messages = Console(stderr=True)
    capture = Source(pid, dump, snapshot, cr3, levels, maps, start, end, stop, kernel=kernel).read(messages)
    with messages.status("walking and drawing"):
        walk = walk_capture(capture, backend=backend)
        shown = strips_of(capture, walk, max_strips=strips)
        pages = f"{sum(capture.resident)} pages of 4 KiB present"
        title = f"{capture.title}: {len(capture.mappings)} mappings, {pages}"
        draw(out, shown, title)
    typer.echo(f"{out}: {title}, {len(shown)} strips")
