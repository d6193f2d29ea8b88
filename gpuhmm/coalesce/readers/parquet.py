"""Fault traces as Parquet, through PyArrow: one column each, the notes in the metadata of the schema."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.readers.lines import MAX_FAULTS
from gpuhmm.coalesce.trace import COLUMNS, FaultTrace
from gpuhmm.results.parquet import pyarrow
from gpuhmm.results.partial_file import whole_file

#: What every file of Parquet begins and ends with.
MAGIC = b"PAR1"

#: Columns that are stored as differences.
_COUNTING = ("time", "va")

_NOTES_KEY = b"gpuhmm_fault_trace"
_ROW_GROUP = 1 << 20


def write_trace(path: str | os.PathLike[str], trace: FaultTrace) -> None:
    """Write a trace to ``path``, whole or not at all.

    ``time`` and ``va`` are stored as differences (DELTA_BINARY_PACKED), the other columns as places in a
    dictionary, the notes as JSON, and each page has a checksum.  ValueError for a trace that
    :meth:`FaultTrace.check` refuses, TypeError for notes that are no JSON, OSError where the file cannot be
    written, ImportError without PyArrow.
    """
    arrow = pyarrow()
    trace.check()
    try:
        notes = json.dumps(trace.notes, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the notes of a trace must be JSON: {error}") from None
    table = arrow.table({name: arrow.array(getattr(trace, name)) for name in COLUMNS})
    with whole_file(path) as partial:
        arrow.parquet.write_table(
            table.replace_schema_metadata({_NOTES_KEY: notes.encode()}),
            partial,
            compression="zstd",
            row_group_size=_ROW_GROUP,
            use_dictionary=[name for name in COLUMNS if name not in _COUNTING],
            column_encoding=dict.fromkeys(_COUNTING, "DELTA_BINARY_PACKED"),
            write_page_checksum=True,
        )


def read(path: str | os.PathLike[str]) -> FaultTrace:
    """Return the trace in a file of Parquet, by :func:`write_trace` or by others.

    Columns may be of any integers that hold values which their dtype in COLUMNS holds too; ``va`` must be
    there, others are 0 where they are not.  Rows count from 0.  ValueError that names the column, and the
    row where there is one, for unknown columns, other types, nulls, values that do not fit, times that
    fall, unknown accesses and addresses that cannot be; for a file that was cut, and for one of more than
    MAX_FAULTS rows.  OSError where the file cannot be opened, ImportError without PyArrow.
    """
    arrow = pyarrow()
    with open(path, "rb") as file:
        with _damage_told(path, arrow):
            held = arrow.parquet.ParquetFile(file, page_checksum_verification=True)
            names = held.schema_arrow.names
        _check_names(path, names)
        if held.metadata.num_rows > MAX_FAULTS:
            raise ValueError(
                f"{path}: a file may hold {MAX_FAULTS} faults (got {held.metadata.num_rows} rows)"
            )
        with _damage_told(path, arrow):
            table = held.read()
    columns = {name: _column(path, arrow, table, name) for name in table.column_names}
    notes = _notes(path, (table.schema.metadata or {}).get(_NOTES_KEY, b"{}"))
    try:
        return FaultTrace.of(**columns, notes=notes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@contextmanager
def _damage_told(path: str | os.PathLike[str], arrow: Any) -> Iterator[None]:
    """Turn what PyArrow raises for bytes that are no Parquet into a ValueError that begins with the path."""
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: the file was cut, or is no Parquet: {error}") from error


def _check_names(path: str | os.PathLike[str], names: list[str]) -> None:
    for name in names:
        if name not in COLUMNS:
            raise ValueError(f"{path}: column {name} is unknown: a trace has {', '.join(COLUMNS)}")
        if names.count(name) > 1:
            raise ValueError(f"{path}: column {name} is there {names.count(name)} times")
    if "va" not in names:
        raise ValueError(f"{path}: column va is missing (there are {', '.join(names) or 'none'})")


def _column(path: str | os.PathLike[str], arrow: Any, table: Any, name: str) -> npt.NDArray[Any]:
    column, dtype = table[name], COLUMNS[name]
    if not arrow.types.is_integer(column.type):
        raise ValueError(f"{path}: column {name} must be of integers (got {column.type})")
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise ValueError(f"{path}: column {name}, row {row}: must not be null")
    values = column.to_numpy()
    most = np.iinfo(dtype).max
    wrong = (values < 0) | (values > most)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"{path}: column {name}, row {row}: must be from 0 to {most} (got {int(values[row])})"
        )
    return np.ascontiguousarray(values, dtype=dtype)


def _notes(path: str | os.PathLike[str], text: bytes) -> dict[str, Any]:
    try:
        notes = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: the metadata {_NOTES_KEY.decode()} is no JSON: {error}") from None
    if not isinstance(notes, dict):
        raise ValueError(f"{path}: the metadata {_NOTES_KEY.decode()} must be an object of JSON")
    return notes
