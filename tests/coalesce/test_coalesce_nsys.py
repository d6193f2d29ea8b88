"""SQLite exports of nsys, made here by plain inserts."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gpuhmm.coalesce.readers import nsys, read_trace

SCHEMA = "start, end, globalPid, deviceId, address, numberOfPageFaults, faultAccessType"
A = 0x7F0000000000
ROWS = [
    (300, 350, 77, 0, A + 4096, 1, 2),
    (100, 150, 99, 0, A, 3, 1),
    (300, 350, 77, 0, A, 2, 4),
    (200, 250, 77, 0, A + 8192 + 17, 1, 3),
]


def export(path: Path, rows: list[tuple[object, ...]], schema: str = SCHEMA) -> Path:
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as base:
        base.execute("CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT NOT NULL)")
        base.executemany("INSERT INTO StringIds VALUES (?, ?)", [(i, "x" * 200) for i in range(200)])
        base.execute(f"CREATE TABLE {nsys.TABLE} ({schema})")
        marks = ", ".join("?" * len(schema.split(",")))
        base.executemany(f"INSERT INTO {nsys.TABLE} VALUES ({marks})", rows)
        base.commit()
    return path


def test_rows_become_faults(tmp_path: Path) -> None:
    trace = read_trace(export(tmp_path / "a b?#%.sqlite", ROWS))
    assert trace.time.tolist() == [100, 100, 100, 200, 300, 300, 300]
    assert trace.va.tolist() == [A, A, A, A + 8192, A + 4096, A, A]
    assert trace.access.tolist() == [1, 1, 1, 4, 2, 0, 0]
    assert trace.space.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert trace.notes == {"format": "nsys", "device": 0, "rows": 4, "processes": [99, 77]}


def test_devices(tmp_path: Path) -> None:
    path = export(tmp_path / "a.sqlite", [*ROWS, (50, 60, 5, 1, A, 1, 1)])
    assert len(read_trace(path, device=0)) == 7
    assert read_trace(path, device=1).time.tolist() == [50]
    with pytest.raises(ValueError, match=rf"^{path}: .*column deviceId: choose one device of 0, 1"):
        read_trace(path)
    with pytest.raises(ValueError, match=r"column deviceId: device 2 is not there \(0, 1 are\)"):
        read_trace(path, device=2)


def test_an_export_without_faults(tmp_path: Path) -> None:
    path = export(tmp_path / "a.sqlite", [])
    assert len(read_trace(path)) == 0
    with pytest.raises(ValueError, match=r"device 0 is not there \(none are\)"):
        read_trace(path, device=0)


@pytest.mark.parametrize(
    ("place", "column", "value", "told"),
    [
        (0, "start", None, "must be an integer (got null)"),
        (0, "start", -1, "must be from 0 to"),
        (0, "start", 1.5, "must be an integer (got 1.5)"),
        (2, "globalPid", "pid", "must be an integer (got 'pid')"),
        (3, "deviceId", -1, "must be from 0 to"),
        (4, "address", -4096, "must be a canonical user address, below 2^56 (got -4096)"),
        (4, "address", 1 << 56, "must be a canonical user address"),
        (4, "address", b"\xff", "must be an integer (got blob)"),
        (5, "numberOfPageFaults", 0, "must be from 1 to"),
        (5, "numberOfPageFaults", 1 << 62, "must be from 1 to"),
        (5, "numberOfPageFaults", 1 << 27, "a file may hold 134217728 faults"),
        (6, "faultAccessType", 0, "must be 1 (read), 2 (write), 3 (atomic) or 4 (prefetch) (got 0)"),
        (6, "faultAccessType", 5, "(got 5)"),
        (6, "faultAccessType", "1", "must be an integer (got '1')"),
    ],
)
def test_bad_values(tmp_path: Path, place: int, column: str, value: object, told: str) -> None:
    bad: list[object] = list(ROWS[3])
    bad[place] = value
    path = export(tmp_path / "a.sqlite", [*ROWS[:3], tuple(bad), *ROWS[3:]])
    with pytest.raises(ValueError, match="row 4") as raised:
        read_trace(path, device=0 if column == "deviceId" else None)
    assert str(raised.value).startswith(f"{path}: table {nsys.TABLE}, row 4, column {column}: ")
    assert told in str(raised.value)


@pytest.mark.parametrize("column", [name.strip() for name in SCHEMA.split(",") if name != " end"])
def test_missing_columns(tmp_path: Path, column: str) -> None:
    path = export(tmp_path / "a.sqlite", [], SCHEMA.replace(column, "other"))
    with pytest.raises(ValueError, match=rf"^{path}: table {nsys.TABLE}, column {column} is missing"):
        read_trace(path)


def test_a_missing_table(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with closing(sqlite3.connect(path)) as base:
        base.execute("CREATE TABLE StringIds (id INTEGER)")
    with pytest.raises(ValueError, match=rf"^{path}: table {nsys.TABLE} is missing"):
        read_trace(path)


def test_no_database(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    for data in (b"", b"SQLite format 3\0", b"something else" * 20):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"^{path}: this is no SQLite database"):
            read_trace(path)
    path.write_bytes(b"SQLite format 3\0" + bytes([255]) * 8000)
    with pytest.raises(ValueError, match=rf"^{path}: "):
        read_trace(path)
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "none.sqlite")


def test_cut_databases(tmp_path: Path) -> None:
    whole = export(tmp_path / "a.sqlite", ROWS * 200).read_bytes()
    path = tmp_path / "cut.sqlite"
    for length in (100, 4095, 4096, 8192, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"^{path}: the database was cut: {length} bytes"):
            read_trace(path)


def test_a_damaged_page_is_told(tmp_path: Path) -> None:
    path = export(tmp_path / "a.sqlite", ROWS * 200)
    whole = bytearray(path.read_bytes())
    whole[4096:] = b"\xa5" * (len(whole) - 4096)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=rf"^{path}: table {nsys.TABLE} cannot be read: "):
        read_trace(path)
