"""Fault traces as Parquet, and which reader a file gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuhmm.coalesce.readers import FORMATS, parquet, read_trace, write_trace
from gpuhmm.coalesce.trace import COLUMNS, FaultTrace

A = 0x7F0000000000

numbers = {
    name: st.integers(0, int(np.iinfo(dtype).max)) | st.integers(0, 3) for name, dtype in COLUMNS.items()
}
numbers["va"] = st.integers(0, (1 << 44) - 1).map(lambda page: page << 12)
numbers["access"] = st.integers(0, 4)
rows = st.lists(st.fixed_dictionaries(numbers), max_size=60)
notes = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows, notes=notes)
def test_round_trip(tmp_path: Path, rows: list[dict[str, int]], notes: dict[str, Any]) -> None:
    rows = sorted(rows, key=lambda row: row["time"])
    columns = {n: np.array([row[n] for row in rows], dtype=dtype) for n, dtype in COLUMNS.items()}
    trace = FaultTrace.of(**columns, notes=notes)
    path = tmp_path / "trace.parquet"
    write_trace(path, trace)
    back = read_trace(path)
    assert back == trace
    assert back.notes == notes
    back.check()
    assert [field.type.to_pandas_dtype() for field in pq.read_schema(path)] == list(COLUMNS.values())
    assert [entry.name for entry in tmp_path.iterdir()] == ["trace.parquet"]


def test_how_it_is_stored(tmp_path: Path) -> None:
    trace = FaultTrace.of(va=np.arange(1 << 16, dtype=np.uint64) << np.uint64(12))
    write_trace(tmp_path / "t.parquet", trace)
    group = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0)
    encodings = {group.column(i).path_in_schema: group.column(i).encodings for i in range(group.num_columns)}
    assert "DELTA_BINARY_PACKED" in encodings["va"]
    assert "DELTA_BINARY_PACKED" in encodings["time"]
    assert "RLE_DICTIONARY" in encodings["utlb"]
    assert (tmp_path / "t.parquet").stat().st_size < 20_000


def table(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_files_of_others(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", access=pa.array([1, 2], pa.int64()), va=pa.array([A, 0], pa.int64()))
    trace = read_trace(path)
    assert trace == FaultTrace.of(va=np.array([A, 0]), access=np.array([1, 2]))
    assert trace.notes == {}
    assert len(read_trace(table(path, va=pa.array([], pa.uint64())))) == 0


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"time": [1]}, "column va is missing (there are time)"),
        ({}, "column va is missing (there are none)"),
        ({"va": [0], "vpn": [1]}, "column vpn is unknown"),
        ({"va": ["0x0"]}, "column va must be of integers (got string)"),
        ({"va": [0.0]}, "column va must be of integers (got double)"),
        ({"va": [True]}, "column va must be of integers (got bool)"),
        ({"va": [0, None, None]}, "column va, row 1: must not be null"),
        (
            {"va": [0, 0], "time": [3, -1]},
            "column time, row 1: must be from 0 to 18446744073709551615 (got -1)",
        ),
        ({"va": [0, 0], "gpc": [0, 256]}, "column gpc, row 1: must be from 0 to 255 (got 256)"),
        (
            {"va": [0, 0], "time": [3, 2]},
            "time of fault 1 must not lie before that of the fault above it (got 2)",
        ),
        ({"va": [0, 0], "access": [4, 5]}, "access of fault 1 must be below 5 (got 5)"),
        ({"va": [4096, 4097]}, "va of fault 1 must be aligned to 4096 (got 0x1001)"),
        ({"va": [0, 1 << 56]}, "va of fault 1 must be a canonical user address"),
    ],
)
def test_bad_tables(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    path = table(tmp_path / "t.parquet", **columns)
    with pytest.raises(ValueError, match=r"column|fault") as raised:
        read_trace(path)
    assert str(raised.value).startswith(f"{path}: {told}")


def test_a_column_twice(tmp_path: Path) -> None:
    column = pa.array([0], pa.uint64())
    pq.write_table(pa.Table.from_arrays([column, column], names=["va", "va"]), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="column va is there 2 times"):
        read_trace(tmp_path / "t.parquet")


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff"])
def test_bad_notes_in_a_file(tmp_path: Path, text: bytes) -> None:
    made = pa.table({"va": [0]}).replace_schema_metadata({b"gpuhmm_fault_trace": text})
    pq.write_table(made, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="the metadata gpuhmm_fault_trace"):
        read_trace(tmp_path / "t.parquet")


def test_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_FAULTS", 3)
    path = table(tmp_path / "t.parquet", va=[0, 0, 0, 0])
    with pytest.raises(ValueError, match=r"a file may hold 3 faults \(got 4 rows\)"):
        read_trace(path)


def test_cut_files(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.parquet", FaultTrace.of(va=np.arange(5000, dtype=np.uint64) << np.uint64(12)))
    whole, path = (tmp_path / "t.parquet").read_bytes(), tmp_path / "cut.parquet"
    for length in (0, 3, 4, 8, 100, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"^{path}: the file was cut, or is no Parquet"):
            read_trace(path)
    # The middle is gone, the footer is whole.
    path.write_bytes(whole[:4] + bytes(200) + whole[204:])
    with pytest.raises(ValueError, match=rf"^{path}: "):
        read_trace(path)


def test_a_changed_byte_of_data_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_trace(path, FaultTrace.of(va=np.arange(5000, dtype=np.uint64) << np.uint64(12)))
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    whole = bytearray(path.read_bytes())
    whole[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=rf"^{path}: the file was cut, or is no Parquet: .*CRC"):
        read_trace(path)


def test_refused_traces_leave_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"before")
    falling = FaultTrace.of(va=np.zeros(2, dtype=np.uint64))
    falling.time[0] = 5
    with pytest.raises(ValueError, match="time of fault 1"):
        write_trace(path, falling)
    with pytest.raises(TypeError, match="the notes of a trace must be JSON"):
        write_trace(path, FaultTrace.of(va=np.zeros(1, dtype=np.uint64), notes={"a": object()}))
    with pytest.raises(TypeError, match="the notes of a trace must be JSON"):
        write_trace(path, FaultTrace.of(va=np.zeros(1, dtype=np.uint64), notes={"a": float("nan")}))
    with pytest.raises(OSError, match="cannot be written"):
        write_trace(tmp_path / "none" / "t.parquet", FaultTrace.empty())
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"]


def test_no_known_format(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    for data in (b"", b"time,va\n1,2\n", b"\0" * 100):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"^{path}: this is no fault trace of a known format") as raised:
            read_trace(path)
        assert all(name in str(raised.value) for name in FORMATS)
    with pytest.raises(ValueError, match="a format must be one of parquet, nsys, gpu_ext, uvm-eval"):
        read_trace(path, format="csv")


def test_a_device_where_there_is_none(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.parquet", FaultTrace.empty())
    with pytest.raises(ValueError, match="a device can be picked of an export of nsys only"):
        read_trace(tmp_path / "t.parquet", device=0)


def test_content_goes_before_the_suffix(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.sqlite", FaultTrace.empty())
    assert len(read_trace(tmp_path / "trace.sqlite")) == 0
    with pytest.raises(ValueError, match="this is no SQLite database"):
        read_trace(tmp_path / "trace.sqlite", format="nsys")
