"""Captures of address spaces that no live process gave: of a dump, or of a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.capture.mapping import Mapping
from gpuhmm.capture.record import Capture
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.vma import VM_EXEC, VM_READ, VM_SHARED, VM_WRITE, Vma
from gpuhmm.mm.x86 import KNL_ERRATUM_MASK, PAGE_PRESENT, PAGE_PROTNONE
from gpuhmm.translation import mappings
from gpuhmm.translation.slots import parts, user_limit

#: Where the write bit comes from; live processes have a rule of their own.
ENTRIES_WRITE_RULE = "read from the entries"

_LETTERS = ((VM_READ, "r"), (VM_WRITE, "w"), (VM_EXEC, "x"))
_LEAF_BATCH = 4096


def capture_of_space(
    space: AddressSpace,
    named: Sequence[Mapping],
    *,
    source: str,
    notes: list[str],
    origin: dict[str, Any],
    kernel_why: str = "",
    start: int = 0,
    end: int | None = None,
    seconds: float = 0.0,
) -> Capture:
    """Return a capture of an address space whose areas are ``named``, which may hold names as well.

    ValueError where no mapping lies in ``[start, end)``.
    """
    inside = [
        replace(m, start=max(m.start, start), end=min(m.end, m.end if end is None else end))
        for m in named
        if m.end > start and (end is None or m.start < end)
    ]
    if not inside:
        raise ValueError(f"{source} has no mapping in [{start:#x}, {'the end' if end is None else hex(end)})")
    end = inside[-1].end if end is None else end
    windows, with_swap = _windows(space, start, end)
    return Capture(
        space=space,
        start=start,
        end=end,
        mappings=inside,
        resident=_resident(space, inside),
        windows=windows,
        windows_with_swap=with_swap,
        pfns_real=True,
        write_rule=ENTRIES_WRITE_RULE,
        seconds=seconds,
        origin=origin,
        source=source,
        kernel_why=kernel_why,
        notes=notes,
    )


def cut_capture(capture: Capture, start: int, end: int | None) -> Capture:
    """Return a capture cut to ``[start, end)`` bytes.  ValueError where no mapping lies in it."""
    cut = capture_of_space(
        capture.space,
        capture.mappings,
        source=capture.title,
        notes=capture.notes,
        origin=capture.origin,
        start=max(start, capture.start),
        end=capture.end if end is None else min(end, capture.end),
    )
    return replace(
        capture,
        start=cut.start,
        end=cut.end,
        mappings=cut.mappings,
        resident=cut.resident,
        windows=cut.windows,
        windows_with_swap=cut.windows_with_swap,
    )


def mapping_of(vma: Vma) -> Mapping:
    """Return an area as a mapping without a name."""
    perms = "".join(letter if vma.flags & bit else "-" for bit, letter in _LETTERS)
    perms += "s" if vma.flags & VM_SHARED else "p"
    return Mapping(vma.start, vma.end, perms, 0, "", vma.flags, vma.page_shift)


def _resident(space: AddressSpace, inside: Sequence[Mapping]) -> list[int]:
    """Return how many pages of each mapping have a page behind them."""
    half = 1 << (11 + 9 * space.levels)
    limit = user_limit(space.page_tables)
    runs = mappings(space, 0, half, split_by="address", backend="cpu", max_tables=limit)
    before = np.concatenate(([0], np.cumsum(runs["npages"].astype(np.int64))))

    def below(addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Return how many pages lie below each address."""
        if not len(runs):
            return np.zeros(len(addresses), dtype=np.int64)
        at = np.searchsorted(runs["va"], addresses, side="right")
        last = np.maximum(at, 1) - 1
        into = np.minimum((addresses - np.minimum(runs["va"][last], addresses)) >> 12, runs["npages"][last])
        return np.where(at > 0, before[last] + into.astype(np.int64), 0)

    starts = np.array([m.start for m in inside], dtype=np.uint64)
    ends = np.array([m.end for m in inside], dtype=np.uint64)
    return [int(count) for count in below(ends) - below(starts)]


def _windows(
    space: AddressSpace, start: int, end: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the windows of 2 MiB that hold anything, and those with entries that are not present."""
    tables = space.page_tables
    found, with_swap = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for part in parts(tables, start, end, max_tables=user_limit(tables)):
        for at in range(0, len(part.rows), _LEAF_BATCH):
            chosen = slice(at, at + _LEAF_BATCH)
            entries = tables.leaf[part.rows[chosen].astype(np.intp)]
            window = (part.vas[chosen] >> np.uint64(21)).astype(np.int64)
            anything = (entries & ~KNL_ERRATUM_MASK) != 0
            present = (entries & (PAGE_PRESENT | PAGE_PROTNONE)) != 0
            found.append(window[anything.any(axis=1)])
            with_swap.append(window[(anything & ~present).any(axis=1)])
        first = (part.large[:, 0] >> np.uint64(21)).astype(np.int64)
        counts = (part.large[:, 2] >> np.uint64(9)).astype(np.int64)
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        found.append(np.repeat(first, counts) + inside)
        found.append((part.others[part.others[:, 1] == 2, 0] >> np.uint64(21)).astype(np.int64))
    windows = np.unique(np.concatenate(found))
    low, high = np.searchsorted(windows, [start >> 21, -(-end >> 21)])
    return windows[low:high], np.unique(np.concatenate(with_swap))
