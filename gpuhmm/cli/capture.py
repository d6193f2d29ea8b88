"""``gpuhmm capture``: processes, or what a dump holds, written as snapshots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhmm.cli.parameters import address, number
from gpuhmm.cli.source import (
    CR3_HELP,
    DUMP_HELP,
    END_HELP,
    LEVELS_HELP,
    MAPS_HELP,
    START_HELP,
    STOP_HELP,
    Kernel,
    Source,
)

if TYPE_CHECKING:
    from rich.console import Console


def capture(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the snapshot, or of several.")],
    pid: Annotated[
        list[int] | None, typer.Option(min=1, help="A process; may be given several times.")
    ] = None,
    dump: Annotated[Path | None, typer.Option(help=DUMP_HELP)] = None,
    cr3: Annotated[
        int | None,
        typer.Option(parser=number, metavar="NUMBER", help=CR3_HELP + " Without it, each one that is found."),
    ] = None,
    levels: Annotated[int | None, typer.Option(min=4, max=5, help=LEVELS_HELP)] = None,
    maps: Annotated[Path | None, typer.Option(help=MAPS_HELP)] = None,
    kernel: Kernel = None,
    start: Annotated[int | None, typer.Option(parser=address, metavar="ADDRESS", help=START_HELP)] = None,
    end: Annotated[int | None, typer.Option(parser=address, metavar="ADDRESS", help=END_HELP)] = None,
    stop: Annotated[bool, typer.Option("--stop", help=STOP_HELP)] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a snapshot that is there.")] = False,
) -> None:
    """Write the page tables of processes, or out of a memory dump, as snapshots.

    One process or one CR3 becomes the snapshot OUT.  Of several, each becomes one in the folder OUT:
    pid-N, or cr3-0xN.
    """
    from rich.console import Console

    messages = Console(stderr=True)
    pids = list(dict.fromkeys(pid or []))
    common = Source(None, dump, None, cr3, levels, maps, start, end, stop, kernel=kernel)
    if dump is not None and pids:
        raise typer.BadParameter("one source at a time (got --pid and --dump)")
    if len(pids) > 1:
        out.mkdir(parents=True, exist_ok=True)
        for one in pids:
            _save(replace(common, pid=one), out / f"pid-{one}", force, messages)
    elif dump is not None and cr3 is None:
        _save_roots(common, out, force, messages)
    else:
        _save(replace(common, pid=pids[0] if pids else None), out, force, messages)


def _save_roots(source: Source, out: Path, force: bool, messages: Console) -> None:
    """Save what the dump says of its processors, else everything that a scan finds."""
    from gpuhmm.dump import find_roots
    from gpuhmm.image import open_image

    assert source.dump is not None
    with open_image(source.dump) as image:
        found = list(image.cr3s)
        if not found:
            with messages.status("looking for page tables"):
                roots = find_roots(image, levels=source.levels)
            found = [int(root["cr3"]) for root in roots if root["user"]]
    if not found:
        raise ValueError(
            f"{source.dump} has no top table of a Linux process that a scan could find: give --cr3"
        )
    if len(found) == 1:
        _save(replace(source, cr3=found[0]), out, force, messages)
        return
    out.mkdir(parents=True, exist_ok=True)
    for cr3 in found:
        try:
            _save(replace(source, cr3=cr3), out / f"cr3-{cr3:#x}", force, messages)
        except ValueError as error:  # one of several may have no user half, or be none after all
            typer.echo(f"CR3 {cr3:#x} was left out: {error}", err=True)


def _save(source: Source, out: Path, force: bool, messages: Console) -> None:
    from gpuhmm.snapshot import save_snapshot

    captured = source.read(messages)
    save_snapshot(out, captured, overwrite=force)
    tables = captured.space.page_tables
    typer.echo(
        f"{out}: {captured.title}, {len(captured.mappings)} mappings, "
        f"{sum(captured.resident)} pages of 4 KiB present, {len(tables.where)} tables"
    )
    typer.echo(captured.walked_as)
    for note in captured.notes:
        typer.echo(f"note: {note}")
