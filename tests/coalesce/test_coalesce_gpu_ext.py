"""CSV of the tracers of gpu_ext, written row by row here."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuhmm.coalesce.readers import gpu_ext, lines, read_trace

A = 0x7870E8A00000
CHUNKS = (
    "time_ms,hook_type,pid,owner_pid,va_space,cpu,chunk_addr,list_addr,va_block,va_start,va_end,va_page_index"
)
LATER_CHUNKS = (
    "time_ms,timestamp_ns,hook_type,pid,owner_pid,va_space_id,cpu,chunk_id,list_id,va_block_id,"
    "va_start,va_end,va_page_index"
)
PREFETCHES = (
    "time_ms,cpu,va_start,va_end,page_index,faulted_first,faulted_outer,max_first,max_outer,tree_offset,"
    "leaf_count,level_count,pages_accessed"
)
LATER_PREFETCHES = (
    "time_ms,timestamp_ns,event_type,call_id,cpu,current_pid,fault_pid,owner_tgid,va_start,va_end,page_index,"
    "faulted_first,faulted_outer,max_candidate_first,max_candidate_outer,action,action_name,"
    "policy_result_first,policy_result_outer,final_effective_first,final_effective_outer,final_pages,"
    "tree_offset,leaf_count,level_count,pages_accessed"
)


def chunk(time: object, hook: str, block: int = A, page: object = 0, space: int = 0xFFFF8A00) -> str:
    if hook == "EVICTION_PREPARE":
        return f"{time},{hook},41,,,1,0xffff8a01,0xffff8a02,,,,0"
    end = block + (1 << 21) - 1
    return f"{time},{hook},41,999,{space:#x},1,0xffffcfd7,0xffff8a0a,0xffff8a0b,{block:#x},{end:#x},{page}"


def call(time: object, page: object, first: object = 0, outer: object = 512, block: int = A) -> str:
    return f"{time},3,{block:#x},{block + (1 << 21) - 1:#x},{page},{first},{outer},0,512,0,512,10,24"


def later_call(time: int, event: str, page: int, owner: int = 7) -> str:
    return (
        f"{time // 1000000},{time},{event},1,3,41,0,{owner},{A:#x},{A + 0x1FFFFF:#x},{page},0,512,0,512,0,"
        f"DEFAULT,0,0,0,0,0,0,512,10,24"
    )


def csv(path: Path, *rows: str, end: str = "\n") -> Path:
    path.write_text("\n".join(rows) + end)
    return path


def test_chunk_traces(tmp_path: Path) -> None:
    rows = [
        chunk(0, "ACTIVATE"),
        chunk(0, "POPULATE", space=0xFFFF9000),
        chunk(0, "EVICTION_PREPARE"),
        "1,POPULATE,41,,,1,0xffffcfd7,0xffff8a0a,,,,0",
        chunk(2, "POPULATE", A + (4 << 21), 16),
    ]
    trace = read_trace(csv(tmp_path / "t.csv", CHUNKS, *rows))
    assert trace.time.tolist() == [0, 2_000_000]
    assert trace.va.tolist() == [A, A + (4 << 21) + 16 * 4096]
    assert trace.access.tolist() == [1, 1]
    assert trace.space.tolist() == [0, 1]
    assert trace.notes == {
        "format": "gpu_ext",
        "tool": "chunk_trace",
        "rows": 5,
        "skipped": 1,
        "spaces": [0xFFFF9000, 0xFFFF8A00],
    }


def test_later_chunk_traces(tmp_path: Path) -> None:
    rows = [f"0,{5000 + i},{chunk('', 'POPULATE', A, i)[1:]}" for i in range(3)]
    trace = read_trace(csv(tmp_path / "t.csv", LATER_CHUNKS, *rows))
    assert trace.time.tolist() == [5000, 5001, 5002]
    assert trace.va.tolist() == [A, A + 4096, A + 8192]


def test_a_summary_after_the_rows(tmp_path: Path) -> None:
    summary = ["", "=" * 80, "BPF HOOK SUMMARY", "POPULATE      2"]
    trace = read_trace(csv(tmp_path / "t.csv", CHUNKS, chunk(0, "POPULATE"), *summary, end=""))
    assert len(trace) == 1


def test_prefetch_traces(tmp_path: Path) -> None:
    rows = [call(1, 3, 3, 9), call(1, 8, 3, 9), call(1, 9, 3, 9), "1,3,0x0,0x0,0,0,1,0,0,0,0,0,0"]
    trace = read_trace(csv(tmp_path / "t.csv", PREFETCHES, *rows))
    assert trace.va.tolist() == [A + 3 * 4096, A + 8 * 4096]
    assert trace.notes["tool"] == "prefetch_trace"
    assert (trace.notes["rows"], trace.notes["skipped"], trace.notes["spaces"]) == (4, 2, [0])


def test_later_prefetch_traces(tmp_path: Path) -> None:
    rows = [
        later_call(9_000_010, "CALLBACK", 4),
        later_call(9_000_020, "DECISION", 4),
        later_call(9_000_009, "CALLBACK", 5, owner=3),
        later_call(9_000_030, "DECISION", 5, owner=3),
    ]
    trace = read_trace(csv(tmp_path / "t.csv", LATER_PREFETCHES, *rows))
    assert trace.time.tolist() == [9_000_009, 9_000_010]  # nearer than what a ring buffer mixes up
    assert trace.va.tolist() == [A + 5 * 4096, A + 4 * 4096]
    assert trace.space.tolist() == [1, 0]
    assert trace.notes["spaces"] == [7, 3]


def test_blocks_of_the_file_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        chunk(i // 7, "POPULATE" if i % 3 else "ACTIVATE", A + (i % 5 << 21), i % 512) for i in range(300)
    ]
    path = csv(tmp_path / "t.csv", CHUNKS, *rows)
    whole = read_trace(path)
    assert len(whole) == 200
    monkeypatch.setattr(lines, "BLOCK_BYTES", 400)
    parts = gpu_ext.read(path)
    assert parts == whole
    assert parts.notes == whole.notes


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (chunk(-1, "POPULATE"), "time_ms"),
        (chunk(10**13, "POPULATE"), "time_ms"),
        (chunk("", "POPULATE"), "time_ms"),
        (chunk(3, "POPULATE"), "time_ms"),
        (chunk(5, "populate"), "hook_type"),
        (chunk(5, "POPULATED"), "hook_type"),
        (chunk(5, "POPULATE", space=5).replace("0x5", "5"), "va_space"),
        (chunk(5, "POPULATE", A + 12), "va_start"),
        (chunk(5, "POPULATE", 0xFFFF_8000_0000_0000), "va_start"),
        (chunk(5, "POPULATE").replace(f"{A + 0x1FFFFF:#x}", f"{A - 1:#x}"), "va_end"),
        (chunk(5, "POPULATE").replace(f"{A + 0x1FFFFF:#x}", f"{A + 0x200FFF:#x}"), "va_end"),
        (chunk(5, "POPULATE").replace(f"{A + 0x1FFFFF:#x}", ""), "va_end"),
        (chunk(5, "POPULATE", page=512), "va_page_index"),
        (chunk(5, "POPULATE", page="x"), "va_page_index"),
        (chunk(5, "POPULATE", page=3).replace(f"{A + 0x1FFFFF:#x}", f"{A + 0x2FFF:#x}"), "va_page_index"),
        (chunk(5, "POPULATE").rpartition(",")[0], "va_page_index"),
        (chunk(5, "POPULATE") + ",1", "va_page_index"),
    ],
)
def test_bad_chunk_rows(tmp_path: Path, row: str, column: str) -> None:
    path = csv(tmp_path / "t.csv", CHUNKS, chunk(5, "POPULATE"), row, chunk(-5, "POPULATE"))
    with pytest.raises(ValueError, match=rf"^{path}: line 3, column {column}: "):
        read_trace(path)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (call(-1, 0), "time_ms"),
        (call(1, 512), "page_index"),
        (call(1, -1), "page_index"),
        (call(1, 0, -1), "faulted_first"),
        (call(1, 0, 0, 513), "faulted_outer"),
        (call(1, 0).replace("0x7", "7", 1), "va_start"),
    ],
)
def test_bad_calls(tmp_path: Path, row: str, column: str) -> None:
    path = csv(tmp_path / "t.csv", PREFETCHES, call(0, 1), row)
    with pytest.raises(ValueError, match=rf"^{path}: line 3, column {column}: "):
        read_trace(path)


def test_an_unknown_event(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", LATER_PREFETCHES, later_call(1, "ITER", 3))
    with pytest.raises(ValueError, match=r"line 2, column event_type: must be one of CALLBACK, DECISION"):
        read_trace(path)


def test_headers(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    assert len(read_trace(csv(path, CHUNKS))) == 0
    for text in ("time_ms,cpu\n", "\n", CHUNKS.replace("time_ms", "when") + "\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"^{path}: line 1 must be the header"):
            gpu_ext.read(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"^{path}: line 1 is missing"):
        gpu_ext.read(path)


def test_every_cut_is_told(tmp_path: Path) -> None:
    whole = csv(tmp_path / "t.csv", CHUNKS, chunk(5, "POPULATE"), chunk(6, "POPULATE")).read_bytes()
    ends = {at + 1 for at, byte in enumerate(whole) if byte == ord("\n")}
    path = tmp_path / "cut.csv"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        if length in ends:
            assert len(gpu_ext.read(path)) == whole[:length].count(b"\n") - 1
        else:
            with pytest.raises(ValueError, match=rf"^{path}: line \d"):
                gpu_ext.read(path)


def test_too_many_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_ext, "MAX_SPACES", 2)
    path = csv(tmp_path / "t.csv", CHUNKS, *(chunk(0, "POPULATE", space=i) for i in range(3)))
    with pytest.raises(ValueError, match=rf"^{path}: a trace has at most 2 address spaces \(got 3\)"):
        read_trace(path)
