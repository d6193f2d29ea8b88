"""Everything that is mapped, as maximal runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm.backends import backend_module, resolve_backend
from gpuhmm.mm.tables import Words
from gpuhmm.mm.x86 import U64
from gpuhmm.translation.addresses import PACKAGE
from gpuhmm.translation.canonical import canonical
from gpuhmm.translation.runs import MAPPING_NX, MAPPING_PROTNONE, MAPPING_USER, MAPPING_WRITE
from gpuhmm.translation.slots import Part, parts
from gpuhmm.translation.source import Tables, tables_of

#: One run: ``va`` and ``pa`` in bytes count up together over ``npages`` pages of 4 KiB; ``flags`` are
#: MAPPING_* bits.
MAPPING_DTYPE = np.dtype([("va", np.uint64), ("pa", np.uint64), ("npages", np.uint64), ("flags", np.uint8)])

_SPLIT_BY = {
    "permissions": int(MAPPING_WRITE | MAPPING_USER | MAPPING_NX),
    "address": 0,
}


def mappings(
    source: Any,
    start: int = 0,
    end: int = 1 << 64,
    *,
    split_by: str = "permissions",
    backend: str = "auto",
    max_runs: int | None = None,
    max_tables: int = 1 << 22,
) -> npt.NDArray[np.void]:
    """Return what ``source`` maps in ``[start, end)`` as maximal runs by address, ``MAPPING_DTYPE``[n].

    ``source`` is as in :func:`gpuhmm.translate`; the addresses are canonical, ``end`` up to 2^64.  Runs end
    where virtual or physical addresses skip, where PROTNONE begins or ends, and with ``split_by`` of
    ``permissions`` also where write, user or no-execute changes (the bits of all levels together); with
    ``address`` the flags are those of a run's first page.  ValueError for more than ``max_runs`` (2^24, or
    512 for each table if that is more), and where tables that are used again and again count more than
    ``max_tables``, as those of KASAN's shadow do; :func:`iter_mappings` has no such limits.
    """
    if max_runs is None:
        tables = tables_of(source)
        max_runs = max(1 << 24, (len(tables.upper) + len(tables.leaf)) << 9)
    found = []
    count = 0
    for runs in _found(source, start, end, split_by, backend, max_tables):
        count += len(runs)
        if count > max_runs:
            raise ValueError(
                f"there must be at most max_runs = {max_runs} runs (got more): narrow [start, end), raise "
                "it, or take them from iter_mappings a part at a time"
            )
        found.append(runs)
    return np.concatenate(found) if found else np.empty(0, dtype=MAPPING_DTYPE)


def iter_mappings(
    source: Any, start: int = 0, end: int = 1 << 64, *, split_by: str = "permissions", backend: str = "auto"
) -> Iterator[npt.NDArray[np.void]]:
    """Yield the runs of :func:`mappings` in arrays of bounded size, by address."""
    yield from _found(source, start, end, split_by, backend, None)


def _found(
    source: Any, start: int, end: int, split_by: str, backend: str, max_tables: int | None
) -> Iterator[npt.NDArray[np.void]]:
    tables = tables_of(source)
    if split_by not in _SPLIT_BY:
        raise ValueError(f"split_by must be one of {', '.join(_SPLIT_BY)} (got {split_by!r})")
    if start % 4096 or end % 4096 or not 0 <= start <= end <= 1 << 64:
        raise ValueError(
            f"start and end must be multiples of 4096 with start <= end <= 2^64 (got {start:#x}, {end:#x})"
        )
    info = resolve_backend(backend)
    module = backend_module(resolve_backend("cpu") if info.name == "reference" else info, PACKAGE)
    held = np.empty((0, 4), dtype=np.uint64)  # the last run so far: the next part may continue it
    bits = _SPLIT_BY[split_by]
    for low, high in _halves(tables, start, end):
        for part in parts(tables, low, high, max_tables=max_tables):
            runs = _joined(np.concatenate((held, _runs(module, tables, part, bits))), bits)
            held = runs[-1:]
            if len(runs) > 1:
                yield from _clipped(runs[:-1], low, high, tables.levels)
        yield from _clipped(held, low, high, tables.levels)
        held = held[:0]


def _halves(tables: Tables, start: int, end: int) -> list[tuple[int, int]]:
    """Return what of ``[start, end)`` is canonical, without the bits that are repeated."""
    top = 1 << (12 + 9 * tables.levels)
    half = top >> 1
    spans = [(start, min(end, half)), (max(start - (1 << 64) + top, half), end - (1 << 64) + top)]
    return [(low, high) for low, high in spans if low < high]


def _runs(module: Any, tables: Tables, part: Part, bits: int) -> Words:
    """Return the runs of one part by address; neighbours are not joined yet."""
    if not len(part.rows):
        return part.large
    runs: Words = module.table_runs(tables, part.rows, part.vas, part.above, bits)
    if not len(part.large):
        return runs
    both = np.concatenate((runs, part.large))
    return both[np.argsort(both[:, 0], kind="stable")]


def _joined(runs: Words, bits: int) -> Words:
    """Join neighbours that count on."""
    if len(runs) < 2:
        return runs
    size = runs[:-1, 2] << U64(12)
    same = U64(bits) | MAPPING_PROTNONE
    goes_on = (
        (runs[1:, 0] == runs[:-1, 0] + size)
        & (runs[1:, 1] == runs[:-1, 1] + size)
        & (((runs[1:, 3] ^ runs[:-1, 3]) & same) == 0)
    )
    if not goes_on.any():
        return runs
    firsts = np.concatenate(([0], np.flatnonzero(~goes_on) + 1))
    made = runs[firsts]
    made[:, 2] = np.add.reduceat(runs[:, 2], firsts)
    return made


def _clipped(runs: Words, low: int, high: int, levels: int) -> Iterator[npt.NDArray[np.void]]:
    """Yield the runs cut to ``[low, high)``, if any is left, with canonical addresses."""
    va, pa, npages = runs[:, 0], runs[:, 1], runs[:, 2]
    cut = np.where(va < U64(low), U64(low) - np.minimum(va, U64(low)), U64(0))
    past = np.minimum(va + (npages << U64(12)), U64(high))
    first = va + cut
    keep = first < past
    if not keep.any():
        return
    made = np.empty(int(keep.sum()), dtype=MAPPING_DTYPE)
    made["va"] = canonical(first[keep], levels)
    made["pa"] = (pa + cut)[keep]
    made["npages"] = (past[keep] - first[keep]) >> U64(12)
    made["flags"] = runs[keep, 3]
    yield made
