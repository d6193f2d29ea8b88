"""``gpuhmm info``: what a snapshot or a memory dump holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gpuhmm.cli import options
from gpuhmm.cli.source import Source


def info(
    path: Annotated[Path, typer.Argument(help="Folder of a snapshot, or a memory dump.")],
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Read every file of a snapshot for its checksum.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    segments: options.Segments = None,
    sme_mask: options.SmeMask = None,
) -> None:
    """Say what a snapshot holds and check it, or what a dump holds and which CR3 it may be walked from."""
    found = (
        _snapshot(path, verify)
        if path.is_dir()
        else _dump(Source(dump=path, segments=segments, sme_mask=sme_mask))
    )
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        if isinstance(value, list):
            typer.echo(f"{name}:" + ("" if value else " none"))
            for item in value:
                typer.echo(f"  {_line(item)}")
        else:
            typer.echo(f"{name}: {_line(value)}")


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_line(inner)}" for name, inner in value.items())
    if isinstance(value, str):
        return "".join(letter if letter.isprintable() else "?" for letter in value)
    return str(value)


def _snapshot(path: Path, verify: bool) -> dict[str, Any]:
    from gpuhmm.snapshot import load_snapshot

    loaded = load_snapshot(path, verify=verify)
    manifest, space = loaded.manifest, loaded.space
    found: dict[str, Any] = {
        "snapshot": str(path),
        "version": manifest.version,
        "created": manifest.created,
        "written_by": f"gpuhmm {manifest.gpuhmm}",
        "checksums": "all fit" if verify else "not checked",
        "origin": loaded.origin,
        "kernel": space.kernel.title,
        "levels": space.levels,
        "cr3": f"{space.root_pfn << 12:#x}",
        "tables": len(space.page_tables.where),
        "areas": len(space.vmas),
        "bytes": sum(record.bytes for record in manifest.arrays.values()),
    }
    if loaded.capture is not None:
        found["pages_present"] = sum(loaded.capture.resident)
        found["kernel_why"] = loaded.capture.kernel_why or "not said"
        found["notes"] = loaded.capture.notes
    return found


def _dump(source: Source) -> dict[str, Any]:
    from gpuhmm.dump import find_roots, release_of

    with source.open_dump() as image:
        roots = find_roots(image)
        release = release_of(image)
        hint = f"nothing was found: --sme-mask if AMD's SME or SEV encrypts the memory{image.hint}"
        return {
            "dump": str(source.dump),
            **{n: value for n, value in image.describe().items() if n not in ("memory", "path")},
            **({} if len(roots) else {"hint": hint}),
            "release": "not found" if release is None else f"{release[0]} ({release[1]})",
            "cr3_of_processors": [f"{cr3:#x}" for cr3 in image.cr3s],
            "levels": image.levels if image.levels is not None else "not said",
            "sme_mask": f"{image.sme_mask:#x}",
            "cr3_candidates": [
                {
                    "cr3": f"{root['cr3']:#x}",
                    "levels": int(root["levels"]),
                    "user_entries": int(root["user"]),
                    "kernel_entries": int(root["kernel"]),
                    **({"pti_pair": f"{root['pair']:#x}"} if root["pair"] else {}),
                }
                for root in roots
            ],
            "names": "not read: volatility3 (linux.pslist) and drgn say them, with the kernel's symbols",
        }
