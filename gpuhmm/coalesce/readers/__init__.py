"""Fault traces in files: one of this package's own, and what tools record of real devices."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from gpuhmm.coalesce.readers import gpu_ext, nsys, parquet, uvm_eval
from gpuhmm.coalesce.readers.parquet import write_trace
from gpuhmm.coalesce.trace import FaultTrace

__all__ = ["FORMATS", "read_trace", "write_trace"]

#: What can be read, and what each is.
FORMATS = {
    "parquet": "columns of a fault trace as Parquet (.parquet)",
    "nsys": "SQLite export of Nsight Systems with GPU page faults (.sqlite, .sqlite3, .db)",
    "gpu_ext": "CSV of prefetch_trace or chunk_trace of gpu_ext (.csv)",
    "uvm-eval": "kernel log of the driver 'faults' of uvm-eval (.log, .txt, none)",
}

_READERS: dict[str, Callable[[str | os.PathLike[str]], FaultTrace]] = {
    "parquet": parquet.read,
    "nsys": nsys.read,
    "gpu_ext": gpu_ext.read,
    "uvm-eval": uvm_eval.read,
}

#: What a file is whose content does not say: one that was cut right away, for example.
_SUFFIXES = {".parquet": "parquet", ".sqlite": "nsys", ".sqlite3": "nsys", ".db": "nsys"}

#: How much of a file is looked at, for a line of uvm-eval among the kernel's.
_HEAD_BYTES = 1 << 20

_UVM_EVAL_LINE = re.compile(rb"^(?:\d[^;\n]*;)?[sbfpe],", re.MULTILINE)


def read_trace(
    path: str | os.PathLike[str], *, format: str | None = None, device: int | None = None
) -> FaultTrace:
    """Return the faults of a file: the reader is chosen by its content, then by its suffix.

    ``format`` is a name of FORMATS that says which reader it is instead; ``device`` picks one device of an
    export of nsys that has several.  ValueError, which begins with the path, for what no reader reads and
    for what the reader cannot read; for a ``device`` where the format has none.  OSError where the file
    cannot be opened, ImportError for Parquet without PyArrow.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"a format must be one of {', '.join(FORMATS)} (got {format!r})")
    chosen = format or _recognise(path)
    if chosen is None:
        known = "; ".join(f"{name}: {meaning}" for name, meaning in FORMATS.items())
        raise ValueError(f"{path}: this is no fault trace of a known format ({known})")
    if chosen == "nsys":
        return nsys.read(path, device)
    if device is not None:
        raise ValueError(f"{path}: a device can be picked of an export of nsys only (this is {chosen})")
    return _READERS[chosen](path)


def _recognise(path: str | os.PathLike[str]) -> str | None:
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(parquet.MAGIC):
        return "parquet"
    if head.startswith(nsys.MAGIC):
        return "nsys"
    if gpu_ext.fits(head.partition(b"\n")[0]):
        return "gpu_ext"
    if _UVM_EVAL_LINE.search(head):
        return "uvm-eval"
    return _SUFFIXES.get(Path(path).suffix.lower())
