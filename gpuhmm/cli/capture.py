"""``gpuhmm capture``: processes, or what a dump holds, written as snapshots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhmm.cli import options
from gpuhmm.cli.source import Source

if TYPE_CHECKING:
    from rich.console import Console


def capture(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the snapshot, or of several.")],
    pid: Annotated[
        list[int] | None, typer.Option(min=1, help="A process; may be given several times.")
    ] = None,
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
    stop: options.Stop = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a snapshot that is there.")] = False,
) -> None:
    """Write the page tables of processes, or out of a memory dump, as snapshots.

    One process or one CR3 becomes the snapshot OUT.  Of several, each becomes one in the folder OUT:
    pid-N, or cr3-0xN.
    """
    from rich.console import Console

    messages = Console(stderr=True)
    pids = list(dict.fromkeys(pid or []))
    common = Source(
        None, dump, None, cr3, levels, maps, start, end, stop, segments, sme_mask, upright_protnone, kernel
    )
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
    """Save every process that a scan finds, and what the dump says of its processors besides."""
    from gpuhmm.dump import find_roots, processor_roots

    with source.open_dump() as image:
        with messages.status("looking for page tables"):
            roots = find_roots(image, levels=source.levels)
        beside = set(processor_roots(image)).difference(roots["cr3"].tolist())
        hint = image.hint
    kernel_alone = roots["user"] == 0
    user_halves = (roots["pair"] != 0) & (roots["pair"] < roots["cr3"])
    chosen = roots[~kernel_alone & ~user_halves]
    found = [*chosen[["cr3", "levels"]].tolist(), *((cr3, source.levels) for cr3 in sorted(beside))]
    if not found:
        raise ValueError(
            f"{source.dump} has no top table of a Linux process that a scan could find: give --cr3, "
            f"or --sme-mask if AMD's SME or SEV encrypts the memory{hint}"
        )
    if len(found) > 1:
        out.mkdir(parents=True, exist_ok=True)
    saved = 0
    for cr3, levels in found:
        where = out / f"cr3-{cr3:#x}" if len(found) > 1 else out
        try:
            _save(replace(source, cr3=cr3, levels=levels), where, force, messages)
            saved += 1
        except ValueError as error:  # one of several may have no user half, or be none after all
            if len(found) == 1:
                raise
            typer.echo(f"CR3 {cr3:#x} was left out: {error}", err=True)
    for left_out, what in (
        (kernel_alone, "the kernel alone"),
        (user_halves, "user mode, beside the kernel's"),
    ):
        if left_out.any():
            typer.echo(f"note: {int(left_out.sum())} top tables of {what} were left out")
    if not saved:
        raise ValueError(f"none of the {len(found)} top tables of {source.dump} could be read")


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
