"""A driver in few lines: read at most a batch, map what it asks for, flush, replay."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuhmm.mirror.page_table import DPT_VALID, DPT_WRITE

ALL = np.uint64(DPT_VALID | DPT_WRITE)


@dataclass
class Service:
    """What the driver saw: a batch each."""

    raw: list[int] = field(default_factory=list)
    unique: list[int] = field(default_factory=list)
    merged: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    traces: list[Any] = field(default_factory=list)


def merged(trace: Any) -> int:
    """What is left when a fault is merged with the last one or with its µTLB's last one, if of that page."""
    last: dict[int, int] = {}
    before = -1
    left = 0
    for va, utlb in zip(trace.va.tolist(), trace.utlb.tolist(), strict=True):
        if va != before and last.get(utlb) != va:
            left += 1
        last[utlb] = va
        before = va
    return left


def serve(
    device: Any,
    batch: int = 256,
    keep: bool = False,
    counted: bool = True,
    most: int = 10**9,
    costs: tuple[int, int, int] = (10_000, 40_000, 3000),
) -> Service:
    """Serve until the device says nothing more; ``costs`` in ns: to the interrupt, a batch, a page."""
    interrupt, fixed, page_cost = costs
    seen = Service()
    now = get = 0
    while len(seen.raw) < most:
        found = device.next_fault(now)
        if found is None:
            return seen
        now = max(now, found + interrupt)
        put = device.read_put(now)
        while True:
            if put == get:
                break
            past = min(put, get + batch)
            trace = device.read(get, past)
            device.write_get(past)
            places = device.areas.places(trace.space, trace.va)
            pages = np.unique(places)
            device.areas.entries[pages] |= ALL
            seen.raw.append(len(trace))
            seen.unique.append(len(pages))
            if counted:
                seen.merged.append(merged(trace))
                seen.blocks.append(len(np.unique(trace.va >> np.uint64(21))))
            if keep:
                seen.traces.append(trace)
            now += fixed + page_cost * len(pages)
            get = device.read_put(now)
            device.write_get(get)
            device.replay(now)
            put = device.read_put(now)
            if len(seen.raw) >= most:
                break
    return seen
