"""Make a differing case small: fewer pages, areas, entries and requests, as long as it still differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from gpuhmm.check.case import Case
from gpuhmm.hmm.words import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE
from gpuhmm.mm.tables import Words

#: Replays that one case is worth.
MAX_TRIALS = 1500

_REQUESTS = int(HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE)


def shrink(case: Case, differs: Callable[[Case], bool]) -> Case:
    """Return the smallest case found for which ``differs`` still holds; it holds for ``case``."""
    trials = 0

    def still(candidate: Case) -> bool:
        nonlocal trials
        trials += 1
        try:
            return trials <= MAX_TRIALS and differs(candidate)
        except ValueError:  # without that entry or area it is no legal space any more
            return False

    while True:
        before = _size(case)
        case = _first_that_holds(case, still)
        if _size(case) >= before or trials >= MAX_TRIALS:
            return case


def _size(case: Case) -> tuple[int, ...]:
    return (
        case.npages,
        len(case.table_entries),
        len(case.vmas),
        len(case.table_pfns),
        int(np.count_nonzero(case.hmm_pfns_in)),
        case.default_flags.bit_count() + case.pfn_flags_mask.bit_count(),
        int(case.invalidate_after >= 0) + int(case.shstk),
    )


def _first_that_holds(case: Case, still: Callable[[Case], bool]) -> Case:
    """Take every step that keeps the difference, each kind once through."""
    for steps in (_shorter, _plainer, _fewer_vmas, _fewer_entries, _fewer_requests, _fewer_tables):
        for_good = False
        while not for_good:
            for_good = True
            for candidate in steps(case):
                if still(candidate):
                    case, for_good = candidate, False
                    break
    return case


def _shorter(case: Case) -> Iterator[Case]:
    """Yield the case with pages cut off at either end."""
    cut = case.npages // 2
    while cut:
        words = case.hmm_pfns_in
        yield replace(case, end=case.end - (cut << 12), hmm_pfns_in=words[:-cut].copy())
        yield replace(case, start=case.start + (cut << 12), hmm_pfns_in=words[cut:].copy())
        cut //= 2


def _plainer(case: Case) -> Iterator[Case]:
    """Yield the case with one scalar made plain."""
    plain = {
        "invalidate_after": -1,
        "shstk": False,
        "dev_private_owner": 0,
        "pfn_flags_mask": case.pfn_flags_mask & _REQUESTS,
        "default_flags": case.default_flags & _REQUESTS,
    }
    for name, value in plain.items():
        if getattr(case, name) != value:
            yield _with(case, name, value)
    for name in ("default_flags", "pfn_flags_mask"):
        if getattr(case, name):
            yield _with(case, name, 0)


def _with(case: Case, name: str, value: int) -> Case:
    fields: dict[str, int] = {name: value}
    return replace(case, **fields)  # type: ignore[arg-type]


def _fewer_vmas(case: Case) -> Iterator[Case]:
    for kept in _without_some(case.vmas):
        yield replace(case, vmas=kept)


def _fewer_entries(case: Case) -> Iterator[Case]:
    for kept in _without_some(case.table_entries):
        yield replace(case, table_entries=kept)


def _fewer_requests(case: Case) -> Iterator[Case]:
    asked = np.flatnonzero(case.hmm_pfns_in)
    for kept in _without_some(asked.astype(np.uint64)):
        words = np.zeros_like(case.hmm_pfns_in)
        words[kept.astype(np.int64)] = case.hmm_pfns_in[kept.astype(np.int64)]
        yield replace(case, hmm_pfns_in=words)


def _fewer_tables(case: Case) -> Iterator[Case]:
    """Yield the case without one table that holds nothing and that nothing points to."""
    pointed_to = (case.table_entries[:, 2] >> np.uint64(12)) & np.uint64((1 << 40) - 1)
    for place in range(len(case.table_pfns) - 1, 0, -1):
        holds = case.table_entries[:, 0] == place
        if holds.any() or (pointed_to == case.table_pfns[place]).any():
            continue
        entries = case.table_entries.copy()
        entries[entries[:, 0] > place, 0] -= np.uint64(1)
        yield replace(case, table_pfns=np.delete(case.table_pfns, place), table_entries=entries)


def _without_some(rows: Words) -> Iterator[Words]:
    """Yield the rows without one piece: halves first, single rows last."""
    size = (len(rows) + 1) // 2
    while size:
        for first in range(0, len(rows), size):
            yield np.delete(rows, np.s_[first : first + size], axis=0)
        size = size // 2
