"""Preprocessing step by step: the statements of gpuhmm.coalesce.drivers.uvm, a batch after the other."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.coalesce.drivers.uvm.fetch import Fetch, fetch
from gpuhmm.coalesce.drivers.uvm.sort import (
    SortedEntry,
    count_duplicates,
    group_by_window,
    sort_representatives,
)
from gpuhmm.coalesce.preprocess.table import COUNTS, DUPLICATE, NEW_WINDOW, BatchTable

if TYPE_CHECKING:
    from gpuhmm.coalesce.preprocess.rules import Rules
    from gpuhmm.coalesce.trace import FaultTrace


def coalesce(trace: FaultTrace, rules: Rules, batch: int, window: int) -> BatchTable:
    """Return the batches of a trace; see :func:`gpuhmm.coalesce.preprocess.coalesce.coalesce_trace`."""
    representative: list[int] = []
    rows: list[tuple[int, int, int, int]] = []
    firsts = [0]
    counts = []
    for start in range(0, len(trace), batch):
        fetched = fetch(trace[start : start + batch], rules.merge)
        ordered = _sorted(fetched, rules)
        groups = group_by_window(ordered, window)
        representative.extend(fetched.representative(entry.index).index for entry in fetched.entries)
        for group in groups:
            for place, item in enumerate(group):
                flag = DUPLICATE * item.duplicate | NEW_WINDOW * (place == 0)
                rows.append((item.entry.index, item.entry.instances, item.entry.access_mask, flag))
        firsts.append(len(rows))
        counts.append(_counts(fetched, ordered, window))
    columns = list(zip(*rows, strict=True)) or [()] * 4
    dtypes = (np.uint16, np.uint32, np.uint8, np.uint8)
    index, instances, masks, flags = (
        np.array(column, dtype=dtype) for column, dtype in zip(columns, dtypes, strict=True)
    )
    return BatchTable(
        rules,
        batch,
        window,
        np.array(representative, dtype=np.uint16),
        index,
        instances,
        masks,
        flags,
        np.array(firsts, dtype=np.int64),
        np.array(counts, dtype=np.uint32).reshape(-1, len(COUNTS)).T,
    )


def _sorted(fetched: Fetch, rules: Rules) -> list[SortedEntry]:
    """Return the representatives in the order of the rules, by a stable sort."""
    if rules.ranks == (4, 3, 2, 1, 0):
        return sort_representatives(fetched.representatives())
    ordered = sorted(
        fetched.representatives(), key=lambda entry: (entry.space, entry.va, rules.ranks[entry.access])
    )
    seen: set[tuple[int, int]] = set()
    items = []
    for entry in ordered:
        items.append(SortedEntry(entry, (entry.space, entry.va) in seen))
        seen.add((entry.space, entry.va))
    return items


def _counts(fetched: Fetch, ordered: list[SortedEntry], window: int) -> list[int]:
    pages = set()
    pairs = set()
    windows: Counter[tuple[int, int]] = Counter()
    same = cross = 0
    for entry in fetched.entries:
        page = (entry.space, entry.va)
        if (page, entry.utlb) in pairs:
            same += 1
        elif page in pages:
            cross += 1
        pages.add(page)
        pairs.add((page, entry.utlb))
        windows[entry.space, entry.va // window] += 1
    return [
        len(fetched.entries),
        fetched.coalesced,
        len(pages),
        same,
        cross,
        len(windows),
        max(windows.values()),
        count_duplicates(ordered),
    ]
