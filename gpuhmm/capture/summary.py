"""What ``gpuhmm walk`` says about a capture: one record for the table and for JSON alike."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gpuhmm.capture.mapping import Mapping
from gpuhmm.capture.record import Capture, LiveProcess
from gpuhmm.capture.walk import CaptureWalk, PreparedBackend, WalkedMapping, walk_capture
from gpuhmm.hmm.runs import Runs
from gpuhmm.hmm.words import HMM_PFN_ERROR, HMM_PFN_VALID, HMM_PFN_WRITE
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.tables import NO_CHILD
from gpuhmm.mm.x86 import PAGE_PRESENT, PAGE_PROTNONE, swp_type

_PRESENT = PAGE_PRESENT | PAGE_PROTNONE


@dataclass(frozen=True)
class PageCounts:
    """Pages of 4 KiB, counted by what the walk says of them.

    ``pages`` = ``present`` + ``swapped`` + ``special`` + ``holes`` + ``errors``; ``present`` =
    ``order_0`` + ``order_9`` + ``order_18``.  ``resident`` is what pagemap counts as present, also where
    the walk gives ERROR.  ``longest_run`` is the longest stretch in which addresses and PFNs count
    up together; None where PFNs are not real.
    """

    pages: int
    present: int
    order_0: int
    order_9: int
    order_18: int
    writable: int
    swapped: int
    special: int
    holes: int
    errors: int
    resident: int
    longest_run: int | None
    faults: int


@dataclass(frozen=True)
class MappingSummary:
    """One mapping, addresses and sizes in bytes; ``error`` is the errno that a request ended with."""

    start: int
    end: int
    perms: str
    name: str
    size: int
    page_size: int
    counts: PageCounts
    error: str | None


@dataclass(frozen=True)
class CaptureSummary:
    """A capture's walk in numbers; what only a live process has is None without one."""

    pid: int | None
    command: str | None
    source: str
    kernel: str | None
    profile: str
    profile_lacks: list[str]
    walked_as: str
    start: int
    end: int
    request: str
    faults_modelled: bool
    stopped: bool | None
    changed: bool | None
    pfns: str
    pagemap_scan: bool | None
    kpageflags: bool | None
    write_rule: str
    backend: str
    device: str
    read_seconds: float
    prepare_seconds: float
    walk_seconds: float
    pages_walked: int
    pages_per_second: float
    calls: int
    table_pages: int
    left_out: list[str] | None
    notes: list[str]
    total: PageCounts
    mappings: list[MappingSummary]


def summarize(
    capture: Capture,
    *,
    request: str = "none",
    backend: str | PreparedBackend = "auto",
    stopped: bool = False,
) -> CaptureSummary:
    """Walk ``capture`` (see :func:`walk_capture`) and return what is to be said about it.

    ``stopped`` tells whether the process was, while it was read.
    """
    return summary_of(capture, walk_capture(capture, request=request, backend=backend), stopped=stopped)


def summary_of(capture: Capture, walk: CaptureWalk, *, stopped: bool = False) -> CaptureSummary:
    """Return what is to be said about a capture that was walked."""
    mappings = [
        _mapping(capture, mapping, resident, walked)
        for mapping, resident, walked in zip(capture.mappings, capture.resident, walk.mappings, strict=True)
    ]
    return CaptureSummary(
        **_of_process(capture.process, stopped),
        source=capture.source,
        profile=capture.space.kernel.name,
        profile_lacks=capture.space.kernel.lacks,
        walked_as=capture.walked_as,
        start=capture.start,
        end=capture.end,
        request=walk.request,
        faults_modelled=walk.request != "none",
        pfns="real" if capture.pfns_real else "numbered",
        write_rule=capture.write_rule,
        backend=walk.backend.name,
        device=walk.backend.device,
        read_seconds=capture.seconds,
        prepare_seconds=walk.prepare_seconds,
        walk_seconds=walk.seconds,
        pages_walked=walk.pages,
        pages_per_second=walk.pages / walk.seconds if walk.seconds else 0.0,
        calls=walk.calls,
        table_pages=len(capture.space.page_tables.where),
        notes=[*capture.notes, *_warnings(capture, walk, stopped)],
        total=_total([mapping.counts for mapping in mappings]),
        mappings=mappings,
    )


def _of_process(process: LiveProcess | None, stopped: bool) -> dict[str, Any]:
    """Return what is said about a live process, None in each field where there was none."""
    if process is None:
        return dict.fromkeys(
            ("pid", "command", "kernel", "stopped", "changed", "pagemap_scan", "kpageflags", "left_out")
        )
    return {
        "pid": process.identity.pid,
        "command": process.identity.command,
        "kernel": process.kernel_release,
        "stopped": stopped,
        "changed": process.changed,
        "pagemap_scan": process.pagemap_scan,
        "kpageflags": process.kpageflags,
        "left_out": process.left_out,
    }


def _mapping(capture: Capture, mapping: Mapping, resident: int, walked: WalkedMapping) -> MappingSummary:
    runs = walked.runs
    valid = runs[(runs["flags"] & HMM_PFN_VALID) != 0]
    present = _pages(valid)
    errors = _pages(runs[(runs["flags"] & HMM_PFN_ERROR) != 0])
    swapped, special = (0, 0) if mapping.rejected else _not_present(capture, mapping)
    counts = PageCounts(
        pages=mapping.npages,
        present=present,
        order_0=_pages(valid[valid["order"] == 0]),
        order_9=_pages(valid[valid["order"] == 9]),
        order_18=_pages(valid[valid["order"] == 18]),
        writable=_pages(valid[(valid["flags"] & HMM_PFN_WRITE) != 0]),
        swapped=swapped,
        special=special,
        holes=mapping.npages - present - errors - swapped - special,
        errors=errors,
        resident=resident,
        longest_run=int(valid["npages"].max(initial=0)) if capture.pfns_real else None,
        faults=walked.faults,
    )
    return MappingSummary(
        start=mapping.start,
        end=mapping.end,
        perms=mapping.perms,
        name=mapping.name,
        size=mapping.end - mapping.start,
        page_size=1 << mapping.page_shift,
        counts=counts,
        error=walked.error,
    )


def _pages(runs: Runs) -> int:
    return int(runs["npages"].sum())


def _not_present(capture: Capture, mapping: Mapping) -> tuple[int, int]:
    """Return how many pages are swapped out, and how many entries mean something else, after the walk."""
    swapped = special = 0
    for window in capture.swap_windows(mapping.start, mapping.end):
        entries = _leaf(capture.space, window, mapping)
        absent = entries[(entries & _PRESENT == 0) & (entries != 0)]
        other = int((swp_type(absent) >= np.uint64(capture.space.kernel.max_swapfiles)).sum())
        special += other
        swapped += len(absent) - other
    return swapped, special


def _leaf(mm: AddressSpace, window: int, mapping: Mapping) -> np.ndarray:
    row = mm.page_tables.row(window << 21, 1)
    if row == NO_CHILD:
        return np.empty(0, dtype=np.uint64)
    base = window << 21
    low = max(mapping.start - base, 0) >> 12
    high = min(mapping.end - base, 1 << 21) >> 12
    return mm.page_tables.leaf[row, low:high]


def _total(counts: list[PageCounts]) -> PageCounts:
    sums = {field.name: [getattr(c, field.name) for c in counts] for field in fields(PageCounts)}
    runs = [run for run in sums.pop("longest_run") if run is not None]
    return PageCounts(
        **{name: sum(values) for name, values in sums.items()}, longest_run=max(runs) if runs else None
    )


def _warnings(capture: Capture, walk: CaptureWalk, stopped: bool) -> list[str]:
    said = []
    if walk.request != "none":
        said.append(
            f"faults of --request {walk.request} were modelled on a copy of the page tables; "
            "none was made in the process"
        )
    process = capture.process
    if process is None:
        return said
    if process.left_out:
        said.append(f"left out, in the kernel's half: {', '.join(process.left_out)}")
    if process.changed and process.identity.is_self and not capture.source:
        said.append("this command read itself, and so its mappings changed while they were read")
    elif process.changed:
        said.append(
            "the process changed while it was read"
            + (": " if stopped or capture.source else "; --stop keeps it still: ")
            + "pages of different moments may stand side by side"
        )
    return said
