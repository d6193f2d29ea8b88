"""``gpuhmm map``: a picture of an address space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpuhmm.cli import options
from gpuhmm.cli.parameters import one_of
from gpuhmm.cli.source import Source
from gpuhmm.hmm.backends import BACKENDS

_BACKENDS = ("auto", *BACKENDS)


def draw_map(
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture: .png, .svg or .pdf.")],
    snapshot: options.Snapshot = None,
    pid: options.Pid = None,
    dump: options.Dump = None,
    cr3: options.Cr3 = None,
    levels: options.Levels = None,
    maps: options.Maps = None,
    kernel: options.Kernel = None,
    segments: options.Segments = None,
    sme_mask: options.SmeMask = None,
    upright_protnone: options.UprightProtnone = False,
    start: options.Start = None,
    end: options.End = None,
    strips: Annotated[int, typer.Option(min=1, max=100, help="Stretches that are shown at most.")] = 24,
    backend: Annotated[
        str, typer.Option(parser=one_of(*_BACKENDS), metavar="|".join(_BACKENDS), help="What walks.")
    ] = "auto",
    stop: options.Stop = False,
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
    capture = Source(
        pid, dump, snapshot, cr3, levels, maps, start, end, stop, segments, sme_mask, upright_protnone, kernel
    ).read(messages)
    with messages.status("walking and drawing"):
        walk = walk_capture(capture, backend=backend)
        shown = strips_of(capture, walk, max_strips=strips)
        pages = f"{sum(capture.resident)} pages of 4 KiB present"
        title = f"{capture.title}: {len(capture.mappings)} mappings, {pages}"
        draw(out, shown, title)
    typer.echo(f"{out}: {title}, {len(shown)} strips")
