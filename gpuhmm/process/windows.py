"""Which windows of 2 MiB hold anything, and their words of pagemap.

PAGEMAP_SCAN finds them in time that follows what is populated, however large the mappings are.  Without
it every mapping is read from end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuhmm.capture.mapping import Mapping
from gpuhmm.process.pagemap import (
    PAGE_IS_HUGE,
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PM_POPULATED,
    READ_WINDOWS,
    WINDOW_SHIFT,
    Pagemap,
    Words,
)

Indexes = npt.NDArray[np.int64]

#: Called with the windows read so far and in all.
Progress = Callable[[int, int], None]

#: Pages that are read in all where PAGEMAP_SCAN does not say which are worth it: 1 TiB.
MAX_PAGES_READ = 1 << 28
#: A mapping up to this many pages, 4 GiB, is read in any case.
_SMALL_MAPPING = 1 << 20

_WINDOW = 1 << WINDOW_SHIFT


@dataclass(frozen=True)
class Populated:
    """Where something is: indexes of windows, int64, ascending.

    ``huge`` are those that one PMD maps, ``zero`` the regions that hold the zero page only, huge or
    not: int64[n, 2] of first and past address.  ``scanned`` is false where PAGEMAP_SCAN did not tell;
    then ``windows`` is all that has to be looked at, ``huge`` and ``zero`` are empty, and ``skipped``
    counts the mappings that were too large to be looked at.
    """

    windows: Indexes
    huge: Indexes
    zero: Indexes
    scanned: bool
    skipped: int = 0


def find_populated(pagemap: Pagemap, mappings: Sequence[Mapping], start: int, end: int) -> Populated:
    """Return what is populated in ``[start, end)``, widened to whole windows.

    ValueError without PAGEMAP_SCAN if the mappings are too large to be read from end to end.
    """
    first = start & -_WINDOW
    top = max((mapping.end for mapping in mappings), default=first)
    past = min(-(-end // _WINDOW) * _WINDOW, top)
    regions = pagemap.scan(first, past)
    if regions is None:
        return _everything(mappings, first, past)
    bounds = np.stack([regions["start"], regions["end"]], axis=1).astype(np.int64)
    categories = regions["categories"].astype(np.int64)
    whole = bounds.copy()
    whole[:, 0] = -(-whole[:, 0] // _WINDOW)
    whole[:, 1] //= _WINDOW
    huge = (categories & (PAGE_IS_HUGE | PAGE_IS_PRESENT)) == PAGE_IS_HUGE | PAGE_IS_PRESENT
    return Populated(
        _numbers(bounds[:, 0] >> WINDOW_SHIFT, ((bounds[:, 1] - 1) >> WINDOW_SHIFT) + 1),
        _numbers(whole[huge, 0], whole[huge, 1]),
        bounds[(categories & PAGE_IS_PFNZERO) != 0],
        scanned=True,
    )


def _everything(mappings: Sequence[Mapping], first: int, past: int) -> Populated:
    """Return all windows of the mappings but of those that smaps says are empty."""
    spans = []
    skipped = 0
    pages = 0
    for mapping in mappings:
        low, high = max(mapping.start, first), min(mapping.end, past)
        if low >= high:
            continue
        if high - low > _SMALL_MAPPING << 12 and not mapping.rss and not mapping.swap:
            skipped += 1
            continue
        pages += (high - low) >> 12
        if pages > MAX_PAGES_READ:
            raise ValueError(
                f"the mappings up to {mapping.end:#x} hold more than {MAX_PAGES_READ << 12 >> 40} TiB, too "
                "much to be read without PAGEMAP_SCAN (Linux 6.7); choose a part with --start and --end"
            )
        spans.append((low >> WINDOW_SHIFT, ((high - 1) >> WINDOW_SHIFT) + 1))
    bounds = np.array(spans, dtype=np.int64).reshape(-1, 2)
    none = np.empty(0, dtype=np.int64)
    return Populated(
        _numbers(bounds[:, 0], bounds[:, 1]), none, none.reshape(0, 2), scanned=False, skipped=skipped
    )


def read_windows(pagemap: Pagemap, windows: Indexes, progress: Progress | None) -> tuple[Indexes, Words]:
    """Return those of ``windows`` that hold anything, and their words: int64[n] and uint64[n, 512]."""
    words = np.empty((len(windows), 512), dtype=np.uint64)
    buffer = np.empty((READ_WINDOWS, 512), dtype=np.uint64)
    kept = np.zeros(len(windows), dtype=np.bool_)
    count = 0
    for first, past in runs_of(windows):
        for at in range(first, past, READ_WINDOWS):
            chunk = buffer[: min(READ_WINDOWS, past - at)]
            pagemap.read(int(windows[at]), chunk)
            populated = ((chunk & PM_POPULATED) != 0).any(axis=1)
            found = int(populated.sum())
            words[count : count + found] = chunk[populated]
            kept[at : at + len(chunk)] = populated
            count += found
            if progress is not None:
                progress(at + len(chunk), len(windows))
    return windows[kept], words[:count]


def runs_of(windows: Indexes) -> list[tuple[int, int]]:
    """Return (first, past) positions of each run of neighbouring windows."""
    if not len(windows):
        return []
    cuts = np.flatnonzero(np.diff(windows) != 1) + 1
    return list(zip([0, *cuts.tolist()], [*cuts.tolist(), len(windows)], strict=True))


def flat_slices(windows: Indexes, starts: Indexes, ends: Indexes) -> tuple[Indexes, Indexes]:
    """Return which pages of the windows, counted through, lie in each ``[start, end)`` of bytes.

    (first, past), int64[n] each; ascending, equal where a range has none.
    """
    return _page_positions(windows, starts), _page_positions(windows, ends)


def _page_positions(windows: Indexes, addresses: Indexes) -> Indexes:
    """Return how many pages of the windows lie below each address."""
    if not len(windows):
        return np.zeros(len(addresses), dtype=np.int64)
    window = addresses >> WINDOW_SHIFT
    at = np.searchsorted(windows, window)
    inside = windows[np.minimum(at, len(windows) - 1)] == window
    return at * 512 + np.where(inside, addresses >> 12 & 511, 0)


def _numbers(firsts: Indexes, pasts: Indexes) -> Indexes:
    """Return every number that lies in one of the ranges, ascending and once."""
    counts = np.maximum(pasts - firsts, 0)
    before = np.cumsum(counts) - counts
    return np.unique(np.repeat(firsts - before, counts) + np.arange(int(counts.sum())))
