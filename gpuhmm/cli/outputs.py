"""Files that a command is to write, looked at before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

import typer


def check_outputs(outputs: dict[str, Path | None], read: Path | None = None) -> None:
    """Raise for outputs, by option, that could not be written, and for two that are one file.

    ``read`` is what the command reads: no output may replace it.
    """
    taken = {} if read is None else {_file(read): "what is read"}
    for option, path in outputs.items():
        if path is None:
            continue
        folder = path.absolute().parent
        if not folder.is_dir():
            raise typer.BadParameter(f"{path} cannot be written: there is no such folder")
        if path.is_dir():
            raise typer.BadParameter(f"{path} cannot be written: it is a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise typer.BadParameter(f"{path} cannot be written: the folder may not be written to")
        before = taken.setdefault(_file(path), option)
        if before != option:
            raise typer.BadParameter(f"{option} must not name the file of {before} (got {path})")


def _file(path: Path) -> str:
    return os.path.realpath(path)
