"""The table of GPU page faults in an SQLite export of Nsight Systems (``nsys export --type sqlite``).

The columns are those of the SQLite schema reference of Nsight Systems, and mean what CUPTI says of
``CUpti_ActivityUnifiedMemoryCounter2`` for CUPTI_ACTIVITY_UNIFIED_MEMORY_COUNTER_KIND_GPU_PAGE_FAULT:
``start`` is when the driver took the faults up, ``numberOfPageFaults`` how many there were of one page,
``faultAccessType`` a CUpti_ActivityUnifiedMemoryAccessType.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.access import ACCESS_ATOMIC_STRONG, ACCESS_PREFETCH, ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.readers.lines import MAX_FAULTS
from gpuhmm.coalesce.readers.numbering import MAX_SPACES, number_by_appearance
from gpuhmm.coalesce.trace import FaultTrace

#: What every file of SQLite begins with.
MAGIC = b"SQLite format 3\0"

TABLE = "CUDA_UM_GPU_PAGE_FAULT_EVENTS"

#: The access for each faultAccessType (ENUM_CUDA_UNIF_MEM_ACCESS_TYPE).
ACCESS_TYPES = {1: ACCESS_READ, 2: ACCESS_WRITE, 3: ACCESS_ATOMIC_STRONG, 4: ACCESS_PREFETCH}

#: The columns that are read, with the least and the most that each may hold.
_COLUMNS = {
    "start": (0, (1 << 63) - 1),
    "globalPid": (-(1 << 63), (1 << 63) - 1),
    "deviceId": (0, (1 << 32) - 1),
    "address": (0, (1 << 56) - 1),
    "numberOfPageFaults": (1, MAX_FAULTS),
    "faultAccessType": (min(ACCESS_TYPES), max(ACCESS_TYPES)),
}

_RULES = {
    "address": "must be a canonical user address, below 2^56",
    "faultAccessType": "must be 1 (read), 2 (write), 3 (atomic) or 4 (prefetch)",
}

Column = npt.NDArray[np.int64]


def read(path: str | os.PathLike[str], device: int | None = None) -> FaultTrace:
    """Return the GPU page faults of an export: those of one device, or with None of the only one.

    Rows are taken by ``start``, then by rowid, and a row with ``numberOfPageFaults`` above 1 becomes as
    many equal faults.  ``time`` is ``start``; ``va`` the page of ``address``; an atomic counts as
    ``atomic_strong``, because the export does not tell the two apart.  Each ``globalPid`` is an address
    space, numbered by first appearance.  ``gpc``, ``utlb``, ``sm`` and ``client`` are 0: the export does
    not hold them, nor when the device faulted or which faults a batch had.  CPU page faults
    (CUDA_UM_CPU_PAGE_FAULT_EVENTS) are no faults of a device and not read.

    ``notes`` hold the ``device``, the ``rows`` and the ``processes``, the globalPid of each space.

    ValueError that names the table, the row (its rowid) and the column of what cannot be read; for a file
    that is no database or was cut; for a device that is not in it, and for several devices without a
    choice, because each has a fault buffer of its own.  OSError where the file cannot be opened.
    """
    _check_length(path)
    with _opened(path) as base:
        _check_columns(path, base)
        for name, (least, most) in _COLUMNS.items():
            _check_values(path, base, name, least, most)
        device = _device(path, base, device)
        # A rowid is unique, so the order is one.
        found = base.execute(
            f'SELECT {", ".join(_COLUMNS)}, rowid FROM {TABLE} WHERE deviceId = ? ORDER BY "start", rowid',
            (device,),
        )
        table = np.array(found.fetchall(), dtype=np.int64).reshape(-1, len(_COLUMNS) + 1)
    columns = dict(zip(_COLUMNS, table.T, strict=False))
    return _trace(path, columns, table[:, -1], device)


def _trace(
    path: str | os.PathLike[str], columns: dict[str, Column], rowids: Column, device: int | None
) -> FaultTrace:
    counts = columns["numberOfPageFaults"]
    beyond = np.cumsum(counts) > MAX_FAULTS
    if beyond.any():
        row = int(rowids[int(np.argmax(beyond))])
        raise ValueError(
            f"{path}: table {TABLE}, row {row}, column numberOfPageFaults: "
            f"a file may hold {MAX_FAULTS} faults"
        )
    processes, space = number_by_appearance(columns["globalPid"])
    if len(processes) > MAX_SPACES:
        raise ValueError(f"{path}: table {TABLE}, column globalPid: more than {MAX_SPACES} processes")
    access = np.zeros(max(ACCESS_TYPES) + 1, dtype=np.uint8)
    for number, meaning in ACCESS_TYPES.items():
        access[number] = meaning
    return FaultTrace.of(
        time=np.repeat(columns["start"].astype(np.uint64), counts),
        va=np.repeat(columns["address"].astype(np.uint64) & ~np.uint64(4095), counts),
        access=np.repeat(access[columns["faultAccessType"]], counts),
        space=np.repeat(space, counts),
        notes={
            "format": "nsys",
            "device": device,
            "rows": len(counts),
            "processes": processes.tolist(),
        },
    )


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[sqlite3.Connection]:
    uri = f"{Path(path).resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as base:
            base.text_factory = lambda text: text.decode(errors="replace")
            yield base
    except sqlite3.Error as error:
        raise ValueError(f"{path}: table {TABLE} cannot be read: {error}") from error


def _check_length(path: str | os.PathLike[str]) -> None:
    """ValueError for a file that is no database, or shorter than its header says: SQLite itself looks no
    further than the pages that it needs."""
    with open(path, "rb") as file:
        head = file.read(100)
        length = file.seek(0, os.SEEK_END)
    if len(head) < 100 or not head.startswith(MAGIC):
        raise ValueError(f"{path}: this is no SQLite database (header of {len(head)} bytes)")
    page = int.from_bytes(head[16:18], "big")
    size = int.from_bytes(head[28:32], "big") * (65536 if page == 1 else page)
    # The size in the header is valid if the counters of changes agree (file format 2, section 1.3.7).
    if head[24:28] == head[92:96] and length < size:
        raise ValueError(f"{path}: the database was cut: {length} bytes, the header says {size}")


def _check_columns(path: str | os.PathLike[str], base: sqlite3.Connection) -> None:
    found = base.execute("SELECT type FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone()
    if found != ("table",):
        raise ValueError(
            f"{path}: table {TABLE} is missing: nsys makes it with --cuda-um-gpu-page-faults=true"
        )
    names = [name for _, name, *_ in base.execute(f"PRAGMA table_info({TABLE})")]
    for name in _COLUMNS:
        if name not in names:
            raise ValueError(
                f"{path}: table {TABLE}, column {name} is missing (there are {', '.join(names)})"
            )


def _check_values(
    path: str | os.PathLike[str], base: sqlite3.Connection, name: str, least: int, most: int
) -> None:
    wrong = base.execute(
        f'SELECT rowid, typeof("{name}"), "{name}" FROM {TABLE} '
        f"""WHERE typeof("{name}") <> 'integer' OR "{name}" NOT BETWEEN ? AND ? ORDER BY rowid LIMIT 1""",
        (least, most),
    ).fetchone()
    if wrong is None:
        return
    row, kind, value = wrong
    rule = _RULES.get(name, f"must be from {least} to {most}") if kind == "integer" else "must be an integer"
    shown = f"{value!r:.40}" if kind in ("integer", "real", "text") else kind
    raise ValueError(f"{path}: table {TABLE}, row {row}, column {name}: {rule} (got {shown})")


def _device(path: str | os.PathLike[str], base: sqlite3.Connection, device: int | None) -> int | None:
    devices = [number for (number,) in base.execute(f"SELECT DISTINCT deviceId FROM {TABLE} ORDER BY 1")]
    shown = ", ".join(map(str, devices[:16])) or "none"
    if device is not None and device not in devices:
        raise ValueError(
            f"{path}: table {TABLE}, column deviceId: device {device} is not there ({shown} are)"
        )
    if device is None and len(devices) > 1:
        raise ValueError(f"{path}: table {TABLE}, column deviceId: choose one device of {shown}")
    return devices[0] if device is None and devices else device
