"""Kernel logs of the uvm-eval drivers, written line by line here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuhmm.coalesce.access import ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.readers import lines, read_trace, uvm_eval

A, B, C = 0x7FB144000000, 0x7FB144200000, 0x7FB144400000


def fault(va: int, time: object, access: int = 1, **other: object) -> str:
    values = {"mask": 1 << access, "instances": 1, "client": 0, "utlb": 1, "gpc": 0, "kind": 0} | other
    return (
        f"f,{va:x},{time},{values['kind']},{access},{values['mask']},{values['instances']},0,0,"
        f"{values['client']},127,{values['utlb']},{values['gpc']},1,63"
    )


def log(path: Path, records: list[str], *, prefix: bool = True, end: str = "\n") -> Path:
    written = [f"4,{34763351535 + i},{2567418411941 + 5 * i},-;{r}" for i, r in enumerate(records)]
    path.write_text("\n".join(written if prefix else records) + end)
    return path


def vector_add() -> list[str]:
    """One warp adds two arrays of 32 pages into a third: what a Titan V logged of it, in its shape."""
    first = [fault(A + 4096 * i, 1000000 + 32 * (12 + i // 3 ^ 1)) for i in range(24)]
    first += [fault(B + 4096 * i, 1000000 + 32 * (i // 3 ^ 1)) for i in range(32)]
    second = [fault(A + 4096 * (24 + i), 2000000 + 32 * (i ^ 1), kind=1) for i in range(8)]
    third = [fault(C + 4096 * i, 3000000 + 32 * (i // 2), 2) for i in range(32)]
    kernel = ["uvm range destroy va_range->node.start, va_range->size: 0x207600000, 2097152"]
    return [*kernel, "s,", *first, "b,", "s,", *second, "b,", "s,", *third, "b,", *kernel]


@pytest.mark.parametrize("prefix", [True, False])
def test_a_vector_add(tmp_path: Path, prefix: bool) -> None:
    trace = read_trace(log(tmp_path / "abc_1", vector_add(), prefix=prefix))
    assert len(trace) == 96
    assert trace.notes == {
        "format": "uvm-eval",
        "batches": [56, 8, 32],
        "unique": [56, 8, 32],
        "prefetched": 0,
        "evicted": 0,
        "fatal": 0,
        "out_of_batch": 0,
        "unfinished": 0,
    }
    assert (np.diff(trace.time.astype(np.int64)) >= 0).all()
    assert sorted(trace.va[:56].tolist()) == [A + 4096 * i for i in range(24)] + [
        B + 4096 * i for i in range(32)
    ]
    assert trace.access.tolist() == [ACCESS_READ] * 64 + [ACCESS_WRITE] * 32
    assert set(trace.utlb) == {1}
    # Three entries share each stamp; these stay in the order of the log.
    assert trace.va[:3].tolist() == [B + 4096 * i for i in (3, 4, 5)]


def test_merged_faults_come_back_as_many(tmp_path: Path) -> None:
    records = ["s,", fault(A, 64, instances=3, client=7, utlb=5, gpc=2), fault(B, 32, mask=3), "b,12345,0"]
    records += ["s,", "b,5,0", "s,", fault(C, 96, 4, mask=0b10110, instances=2), "b,7,0"]
    trace = read_trace(log(tmp_path / "log", records))
    assert trace.va.tolist() == [B, A, A, A, C, C]
    assert trace.time.tolist() == [32, 64, 64, 64, 96, 96]
    assert trace.access.tolist() == [1, 1, 1, 1, 4, 4]
    assert trace.client.tolist() == [0, 7, 7, 7, 0, 0]
    assert trace.utlb.tolist() == [1, 5, 5, 5, 1, 1]
    assert trace.gpc.tolist() == [0, 2, 2, 2, 0, 0]
    assert (trace.notes["batches"], trace.notes["unique"]) == ([4, 0, 2], [2, 0, 1])


def test_counts_in_the_notes(tmp_path: Path) -> None:
    records = [
        fault(A, 1),
        "s,",
        "p,7fb144001000",
        "p,7fb144002000",
        fault(B, 5),
        "s,",
        fault(C, 20, kind=9),
    ]
    records += ["e,7fb144003000", "b,1,0"]
    notes = read_trace(log(tmp_path / "log", records)).notes
    assert notes["batches"] == [1, 1, 1]  # the log began within a batch
    assert (notes["prefetched"], notes["evicted"], notes["fatal"]) == (2, 1, 1)
    assert (notes["out_of_batch"], notes["unfinished"]) == (0, 1)
    crossed = ["s,", fault(A, 10), fault(A, 30), "b,", "s,", fault(B, 20), fault(B, 40), "b,"]
    assert read_trace(log(tmp_path / "log", crossed)).notes["out_of_batch"] == 1


BAD_FIELDS = [
    ("fault_address", 1, "-7fb144000000"),
    ("fault_address", 1, "0x7fb144000000"),
    ("fault_address", 1, ""),
    ("fault_address", 1, "7fb144000040"),
    ("fault_address", 1, "ffffffff81000000"),
    ("fault_address", 1, "100000000000000"),
    ("fault_address", 1, "1007fb1440000000000"),
    ("timestamp", 2, "-32"),
    ("timestamp", 2, "3.5"),
    ("timestamp", 2, "99999999999999999999999"),
    ("timestamp", 2, "9223372036854775808"),
    ("fault_type", 3, "16"),
    ("access_type", 4, "5"),
    ("access_type", 4, "-1"),
    ("access_type", 4, "read"),
    ("access_type_mask", 5, "4"),
    ("access_type_mask", 5, "32"),
    ("num_instances", 6, "0"),
    ("num_instances", 6, str((1 << 27) + 1)),
    ("num_instances", 6, str(1 << 27)),
    ("client_type", 7, "2"),
    ("mmu_engine_type", 8, "3"),
    ("client_id", 9, "65536"),
    ("mmu_engine_id", 10, " 127"),
    ("utlb_id", 11, "-1"),
    ("gpc_id", 12, "256"),
    ("channel_id", 13, "x"),
    ("ve_id", 14, ""),
]


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(("column", "place", "value"), BAD_FIELDS)
def test_bad_fields(tmp_path: Path, column: str, place: int, value: str, prefix: bool) -> None:
    fields = fault(A, 1000).split(",")
    fields[place] = value
    records = ["s,", fault(A, 900), ",".join(fields), fault(A, -1), "b,"]
    path = log(tmp_path / "log", records, prefix=prefix)
    with pytest.raises(ValueError, match=rf"^{path}: line 3, column {column}: "):
        read_trace(path)


def test_missing_and_extra_fields(tmp_path: Path) -> None:
    short, long = fault(A, 1).rpartition(",")[0], fault(A, 1) + ",0"
    for line, told in ((short, "column ve_id: is missing"), (long, "column ve_id: must be the last")):
        path = log(tmp_path / "log", ["s,", line, fault(A, -5), "b,"])
        with pytest.raises(ValueError, match=rf"^{path}: line 2, {told}"):
            read_trace(path)


def test_every_cut_is_told(tmp_path: Path) -> None:
    whole = log(tmp_path / "log", ["s,", fault(A, 64), fault(B, 96), "b,"], prefix=False).read_bytes()
    path = tmp_path / "cut"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"^{path}: line \d"):
            uvm_eval.read(path)
    path.write_bytes(b"s,\n" + fault(A, 64).encode()[:-7])
    with pytest.raises(ValueError, match=r"line 2, column utlb_id: the file ends in it"):
        uvm_eval.read(path)


def test_logs_without_faults(tmp_path: Path) -> None:
    path = log(tmp_path / "log", ["s,", "b,"])
    assert len(read_trace(path)) == 0
    path.write_text("nothing of it\n")
    with pytest.raises(ValueError, match=rf"^{path}: no line is one of uvm-eval"):
        uvm_eval.read(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="no line is one of uvm-eval"):
        uvm_eval.read(path)
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "none")


def test_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 256)
    path = tmp_path / "log"
    path.write_bytes(b"s,\n" + bytes(1000))
    with pytest.raises(ValueError, match=rf"^{path}: line 2 is longer than 256 bytes"):
        uvm_eval.read(path)


faults = st.lists(
    st.tuples(
        st.integers(0, (1 << 44) - 1),
        st.integers(0, (1 << 63) - 1) | st.integers(0, 9),
        st.integers(0, 4),
        st.integers(1, 3),
        st.integers(0, 65535),
        st.integers(0, 255),
    ),
    max_size=40,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(faults, min_size=1, max_size=4), block=st.sampled_from([128, 300, 1 << 24]))
def test_any_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: list[list[tuple[int, ...]]], block: int
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    records, expected = [], []
    for batch in batches:
        records += ["s,"]
        for page, time, access, instances, utlb, gpc in batch:
            records.append(fault(page << 12, time, access, instances=instances, utlb=utlb, gpc=gpc))
            expected += [(time, page << 12, access, utlb, gpc)] * instances
        records += ["b,1,0"]
    trace = uvm_eval.read(log(tmp_path / "log", records))
    expected.sort(key=lambda row: row[0])
    columns = (trace.time, trace.va, trace.access, trace.utlb, trace.gpc)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert trace.notes["unique"] == [len(batch) for batch in batches]
    assert trace.notes["batches"] == [sum(row[3] for row in batch) for batch in batches]


COUNTED = (
    "363795213599097,736221,32,9,29,3,3,1,0,0,0,3,12288,3,1,1,15790,35196,0,534863,493736,18104,315251,"
    "34254,290,124063,112010,1,1,1"
)


@pytest.mark.parametrize("prefix", [True, False])
def test_batches(tmp_path: Path, prefix: bool) -> None:
    path = log(tmp_path / "log", ["other", f"b,{COUNTED}", f"e,{COUNTED},101", f"b,{COUNTED}"], prefix=prefix)
    batches = uvm_eval.read_batches(path)
    assert batches.dtype == uvm_eval.BATCH_DTYPE
    assert len(uvm_eval.BATCH_FIELDS) == 31
    assert batches["status"].tolist() == [0, 101, 0]
    first = batches[0]
    assert (first["start_time"], first["time"], first["cached_faults"]) == (363795213599097, 736221, 32)
    assert (first["coalesced_faults"], first["duplicate_faults"], first["actual_faults"]) == (9, 29, 3)
    assert (first["num_new_vablock"], first["unmap_res_count"], first["num_replays"]) == (1, 1, 1)
    with pytest.raises(ValueError, match="read_batches reads these"):
        read_trace(path)


def test_bad_batches(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for text, told in (
        (f"b,{COUNTED}\nb,{COUNTED.replace('736221', '-1')}\n", "line 2, column time: must be a decimal"),
        (f"b,{COUNTED}\nb,{COUNTED[:-2]}\n", "line 2, column num_replays: is missing"),
        (f"b,{COUNTED}\nb,{COUNTED}", "line 2, column num_replays: the file ends in it"),
        (f"b,{COUNTED}\nb", "line 2 has no newline"),
        ("b,\n", "line 1, column time: is missing"),
        ("nothing\n", "no line is a batch"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"^{path}: {told}"):
            uvm_eval.read_batches(path)
