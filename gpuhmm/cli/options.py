"""The options that every command with a source has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gpuhmm.cli.parameters import address, kernel_name, number, segments

Snapshot = Annotated[Path | None, typer.Argument(help="Folder of a snapshot, instead of a process.")]
Pid = Annotated[int | None, typer.Option(min=1, help="The process; without it, this one.")]
Start = Annotated[
    int | None, typer.Option(parser=address, metavar="ADDRESS", help="First address, decimal or 0x...")
]
End = Annotated[int | None, typer.Option(parser=address, metavar="ADDRESS", help="Address to stop before.")]
Stop = Annotated[bool, typer.Option("--stop", help="Stop the process while it is read.")]
Dump = Annotated[
    Path | None,
    typer.Option(help="A memory dump instead of a process: raw, ELF core, LiME or compressed kdump."),
]
Cr3 = Annotated[
    int | None, typer.Option(parser=number, metavar="NUMBER", help="CR3 of the process in the dump.")
]
Levels = Annotated[
    int | None,
    typer.Option(min=4, max=5, help="Levels of the dump's page tables, 4 or 5, if it does not say."),
]
Maps = Annotated[
    Path | None,
    typer.Option(help="Mappings of the dump, in the form of /proc/PID/maps; else from its entries."),
]
Kernel = Annotated[
    str | None,
    typer.Option(
        parser=kernel_name,
        metavar="NAME",
        help="Walk as this kernel: v6.12, or v6.12:no-device-private,no-migration,no-memory-failure for "
        "what its config lacks [default: the kernel that runs, or the one that the dump names].",
    ),
]
Segments = Annotated[
    Any,
    typer.Option(
        parser=segments,
        metavar="START:LENGTH@OFFSET,...",
        help="Where the parts of a raw dump belong, if the hole below 4 GiB was cut out of it.",
    ),
]
SmeMask = Annotated[
    int | None,
    typer.Option(
        parser=number, metavar="NUMBER", help="The bit of entries that AMD's SME or SEV encrypts with."
    ),
]
UprightProtnone = Annotated[
    bool,
    typer.Option(
        "--upright-protnone", help="PROT_NONE entries are not inverted (L1TF): kernels before 4.18.1."
    ),
]
