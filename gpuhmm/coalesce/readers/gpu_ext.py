"""The CSV of the eBPF tracers of gpu_ext (github.com/eunomia-bpf/gpu_ext, ``extension/``).

``prefetch_trace`` logs the calls of ``compute_prefetch_region()``: UVM makes one for each page of a VA
block that faulted and has to move, by rising address, when it services the block.  ``chunk_trace`` logs
what happens to root chunks of device memory.  Both tools changed their columns over time; the header says
which a file has.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from gpuhmm.coalesce.access import ACCESS_READ
from gpuhmm.coalesce.readers.lines import MAX_FAULTS, Block, Rows, Words, blocks, refuse_cut
from gpuhmm.coalesce.readers.numbering import MAX_SPACES, number_by_appearance
from gpuhmm.coalesce.trace import FaultTrace

#: Columns that tell the files of the two tools apart from others.
CHUNK_COLUMNS = ("hook_type", "va_start", "va_end", "va_page_index")
PREFETCH_COLUMNS = ("va_start", "va_end", "page_index", "faulted_first", "faulted_outer")

#: What chunk_trace calls what it logs.
HOOKS = ("UNKNOWN", "ACTIVATE", "POPULATE", "DEPOPULATE", "EVICTION_PREPARE", "EVICTION_SELECTED")

#: What prefetch_trace logs of one page: the call, and what became of it.
EVENTS = ("CALLBACK", "DECISION")

#: How far a row may lie before the one above it, in ns.  Each CPU takes its place in the ring buffer of
#: the tool first and the time afterwards.
DISORDER_NS = 1_000_000

_BLOCK_PAGES = 512
_MOST_MS = ((1 << 63) - 1) // 1_000_000
_POPULATE = HOOKS.index("POPULATE")


def fits(header: bytes) -> bool:
    """Return whether a first line is the header of one of the two tools."""
    names = header.decode(errors="replace").strip().split(",")
    return any(set(columns) <= set(names) for columns in (CHUNK_COLUMNS, PREFETCH_COLUMNS))


@dataclass
class _Part:
    """What one block of the file holds of faults: their columns, their rows, and counts of other rows."""

    time: Words
    va: Words
    owner: Words
    rows: Rows
    read: int
    skipped: int


def read(path: str | os.PathLike[str]) -> FaultTrace:
    """Return the faults of a trace of prefetch_trace or chunk_trace.

    From prefetch_trace, each call is a fault on page ``page_index`` of the block at ``va_start``; rows
    DECISION repeat a call and are passed over, and so are calls whose page does not lie in the faulted
    region, because the tool then found another block's addresses in its cache.  Lost: duplicates, faults
    on pages that had only to be mapped or that thrash, and the order within a service of a block.  Faults
    of the CPU that move pages back are in it too; the tool does not say which they are.

    From chunk_trace, each row POPULATE with a VA block is a fault on page ``va_page_index`` of it.  That
    is where the chunk begins, not the page that faulted: counts of VA blocks hold, counts of pages do not.

    ``time`` is ``timestamp_ns`` where the file has it and ``time_ms`` in ns otherwise.  The access is not
    logged and taken as a read.  Spaces are the values of ``va_space`` (later ``va_space_id``), or of
    ``owner_tgid``, by first appearance in the file.  ``gpc``, ``utlb``, ``sm`` and ``client`` are 0.
    ``notes`` hold the ``tool``, the ``rows`` of the file, how many calls or POPULATE rows were ``skipped``
    for want of an address, and ``spaces``, the value that each number of a space stands for.

    The table ends with the file or at an empty line, after which chunk_trace once printed a summary.
    ValueError that names the line and the column of what cannot be read, and of a time more than
    DISORDER_NS before that of the fault above it; nearer ones are put in order.
    """
    names: list[str] = []
    parts: list[_Part] = []
    total, latest = 0, np.uint64(0)
    for block in blocks(path):
        first = 0 if names else 1
        names = names or _header(path, block)
        empty = np.flatnonzero(block.starts[first:] == block.ends[first:])
        past = first + int(empty[0]) if len(empty) else len(block.starts)
        at = np.arange(first, past)
        rows = Rows(path, block, at, block.starts[at], names)
        part = _chunks(rows, names) if "hook_type" in names else _prefetches(rows, names)
        clock = _clock(names)
        latest = _check_times(part, clock, latest)
        beyond = np.arange(total, total + len(part.time)) >= MAX_FAULTS
        part.rows.refuse(clock, beyond, f"a file may hold {MAX_FAULTS} faults")
        total += len(part.time)
        rows.check()
        parts.append(part)
        if len(empty):
            break
        refuse_cut(path, block)
    if not names:
        raise ValueError(
            f"{path}: line 1 is missing: the header of chunk_trace or prefetch_trace must be there"
        )
    return _trace(path, parts, names)


def _header(path: str | os.PathLike[str], block: Block) -> list[str]:
    line = block.text[block.starts[0] : block.ends[0]].tobytes()
    names = line.decode(errors="replace").split(",")
    if not fits(line) or not {"timestamp_ns", "time_ms"} & set(names):
        raise ValueError(
            f"{path}: line 1 must be the header of chunk_trace ({', '.join(CHUNK_COLUMNS)} and others) or of "
            f"prefetch_trace ({', '.join(PREFETCH_COLUMNS)} and others) "
            f"(got {line[:80].decode(errors='replace')!r})"
        )
    return names


def _clock(names: list[str]) -> str:
    return "timestamp_ns" if "timestamp_ns" in names else "time_ms"


def _times(rows: Rows, names: list[str]) -> Words:
    if "timestamp_ns" in names:
        return rows.decimal("timestamp_ns")
    return rows.decimal("time_ms", _MOST_MS) * np.uint64(1_000_000)


def _chunks(rows: Rows, names: list[str]) -> _Part:
    populates = rows.places("hook_type", HOOKS) == _POPULATE
    time = _times(rows, names)
    held = populates & ~rows.empty("va_start")
    faults = rows.take(held)
    spaces = [name for name in ("va_space", "va_space_id") if name in names]
    owner = faults.hexadecimal(spaces[0], prefix=True) if spaces else np.zeros(len(faults), dtype=np.uint64)
    va = _addresses(faults, "va_page_index")
    return _Part(time[held], va, owner, faults, len(rows), int(np.count_nonzero(populates & ~held)))


def _prefetches(rows: Rows, names: list[str]) -> _Part:
    calls = np.ones(len(rows), dtype=np.bool_)
    if "event_type" in names:
        calls = rows.places("event_type", EVENTS) == EVENTS.index("CALLBACK")
    time = _times(rows, names)
    index = rows.decimal("page_index", _BLOCK_PAGES - 1)
    first, outer = rows.decimal("faulted_first", _BLOCK_PAGES), rows.decimal("faulted_outer", _BLOCK_PAGES)
    found = (first <= index) & (index < outer) & (rows.hexadecimal("va_start", prefix=True) != 0)
    held = calls & found
    faults = rows.take(held)
    owner = faults.decimal("owner_tgid") if "owner_tgid" in names else np.zeros(len(faults), dtype=np.uint64)
    va = _addresses(faults, "page_index")
    return _Part(time[held], va, owner, faults, len(rows), int(np.count_nonzero(calls & ~found)))


def _addresses(rows: Rows, index_name: str) -> Words:
    """Return the address of a page of a VA block; ``va_end`` is the last byte of the block."""
    start, end = rows.hexadecimal("va_start", prefix=True), rows.hexadecimal("va_end", prefix=True)
    offset = rows.decimal(index_name, _BLOCK_PAGES - 1) << np.uint64(12)
    rows.refuse("va_start", start & np.uint64(4095) != 0, "must be aligned to 4096")
    rows.refuse("va_start", start >= np.uint64(1 << 56), "must be a canonical user address, below 2^56")
    span = end - start
    wrong = (end < start) | (span >= np.uint64(_BLOCK_PAGES << 12))
    rows.refuse("va_end", wrong, "must be the end of a block of at most 2 MiB")
    rows.refuse(index_name, ~wrong & (offset > span), "must be that of a page in the block")
    return start + offset


def _check_times(part: _Part, clock: str, latest: np.uint64) -> np.uint64:
    """Return the latest time up to here; a row that lies too far before that is refused."""
    highest = np.maximum.accumulate(np.append(latest, part.time))
    fell = part.time + np.uint64(DISORDER_NS) < highest[:-1]
    part.rows.refuse(clock, fell, "must not lie more than 1 ms before that of a fault above it")
    return np.uint64(highest[-1])


def _trace(path: str | os.PathLike[str], parts: list[_Part], names: list[str]) -> FaultTrace:
    time, va = (np.concatenate([getattr(part, name) for part in parts]) for name in ("time", "va"))
    owners, space = number_by_appearance(np.concatenate([part.owner for part in parts]))
    if len(owners) > MAX_SPACES:
        raise ValueError(f"{path}: a trace has at most {MAX_SPACES} address spaces (got {len(owners)})")
    order = np.argsort(time, kind="stable")
    notes = {
        "format": "gpu_ext",
        "tool": "chunk_trace" if "hook_type" in names else "prefetch_trace",
        "rows": sum(part.read for part in parts),
        "skipped": sum(part.skipped for part in parts),
        "spaces": owners.tolist(),
    }
    return FaultTrace.of(
        time=time[order],
        va=va[order],
        access=np.full(len(va), ACCESS_READ, dtype=np.uint8),
        space=space[order],
        notes=notes,
    )
