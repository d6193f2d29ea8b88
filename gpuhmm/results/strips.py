"""What a picture shows: stretches of areas, each cut into columns in which pages are counted exactly.

An address space is mostly gaps: 128 TiB may hold three MiB.  So the areas are grouped into strips at
the largest gaps, and every strip has a scale of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gpuhmm.capture import Capture, CaptureWalk, Mapping
from gpuhmm.hmm.words import HMM_PFN_ERROR, HMM_PFN_VALID, HMM_PFN_WRITE
from gpuhmm.translation import Reason, translate

#: What a page may be, as it is stacked in a column from below.
STATES = ("1 GiB", "2 MiB", "4 KiB, writable", "4 KiB, read-only", "not present", "error", "hole")

#: Strips that a picture has at most, and columns of one.
MAX_STRIPS = 24
MAX_COLUMNS = 512

_ONE_GIB, _TWO_MIB, _WRITABLE, _READ_ONLY, _NOT_PRESENT, _ERROR, _HOLE = range(7)

Edges = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Strip:
    """``[start, end)`` bytes of the address space.

    ``edges`` are the borders of its n columns, uint64[n + 1]; ``pages`` counts pages of 4 KiB by state and
    column, int64[7, n]: all states together are the pages of areas in the column.
    """

    mappings: list[Mapping]
    edges: Edges
    pages: npt.NDArray[np.int64]

    @property
    def start(self) -> int:
        """The first address."""
        return int(self.edges[0])

    @property
    def end(self) -> int:
        """The address after the last."""
        return int(self.edges[-1])


def strips_of(
    capture: Capture,
    walk: CaptureWalk,
    *,
    max_strips: int = MAX_STRIPS,
    columns: int = MAX_COLUMNS,
) -> list[Strip]:
    """Return a capture that was walked as strips, by address.

    Areas are parted at the largest gaps between them, into at most ``max_strips``; a strip has at most
    ``columns`` columns, and one for each page where it has fewer pages.
    """
    groups = _groups(capture.mappings, max_strips)
    edges = [_edges(group[0].start, group[-1].end, columns) for group in groups]
    every = np.unique(np.concatenate(edges))
    below = _pages_below(capture, walk, every)
    found = []
    for group, borders in zip(groups, edges, strict=True):
        at = np.searchsorted(every, borders)
        found.append(Strip(group, borders, np.diff(below[:, at], axis=1)))
    return found


def _groups(mappings: list[Mapping], most: int) -> list[list[Mapping]]:
    """Cut the mappings at the largest gaps."""
    gaps = np.array([b.start - a.end for a, b in pairwise(mappings)], dtype=np.int64)
    cuts = np.sort(np.argsort(-gaps, kind="stable")[: most - 1])
    cuts = cuts[gaps[cuts] > 0]
    bounds = [0, *(int(cut) + 1 for cut in cuts), len(mappings)]
    return [mappings[a:b] for a, b in pairwise(bounds)]


def _edges(start: int, end: int, columns: int) -> Edges:
    """Return the borders of columns as equal as whole pages allow."""
    pages = (end - start) >> 12
    count = min(columns, pages)
    return np.array([start + (pages * i // count << 12) for i in range(count + 1)], dtype=np.uint64)


def _pages_below(capture: Capture, walk: CaptureWalk, at: Edges) -> npt.NDArray[np.int64]:
    """Return how many pages of each state lie below each address, int64[7, n]."""
    runs = np.concatenate([mapping.runs for mapping in walk.mappings])
    valid = (runs["flags"] & HMM_PFN_VALID) != 0
    error = (runs["flags"] & HMM_PFN_ERROR) != 0
    write = (runs["flags"] & HMM_PFN_WRITE) != 0
    small = valid & (runs["order"] == 0)
    chosen = {
        _ONE_GIB: valid & (runs["order"] == 18),
        _TWO_MIB: valid & (runs["order"] == 9),
        _WRITABLE: small & write,
        _READ_ONLY: small & ~write,
        _ERROR: error,
        _HOLE: ~valid & ~error,
    }
    below = np.zeros((len(STATES), len(at)), dtype=np.int64)
    for state, which in chosen.items():
        below[state] = _below(runs["va"][which], runs["npages"][which], at)
    swapped = _not_present(capture)
    below[_NOT_PRESENT] = _below(swapped, np.ones(len(swapped), dtype=np.uint64), at)
    below[_HOLE] -= below[_NOT_PRESENT]
    return below


def _below(starts: Edges, npages: Edges, at: Edges) -> npt.NDArray[np.int64]:
    """Return how many pages of ascending, disjoint stretches lie below each address."""
    if not len(starts):
        return np.zeros(len(at), dtype=np.int64)
    sums = np.concatenate(([0], np.cumsum(npages.astype(np.int64))))
    place = np.searchsorted(starts, at, side="right")
    last = np.maximum(place, 1) - 1
    into = np.minimum((at - np.minimum(starts[last], at)) >> np.uint64(12), npages[last]).astype(np.int64)
    return np.where(place > 0, sums[last] + into, 0)


def _not_present(capture: Capture) -> Edges:
    """Return the addresses of pages whose entry is neither present nor none and which read as holes."""
    windows = capture.windows_with_swap.astype(np.uint64) << np.uint64(21)
    vas = (windows[:, None] + (np.arange(512, dtype=np.uint64) << np.uint64(12))).reshape(-1)
    vas = vas[translate(capture.space, vas, backend="cpu").reasons == Reason.NOT_PRESENT]
    inside = np.zeros(len(vas), dtype=np.bool_)
    for mapping in capture.mappings:
        if not mapping.rejected:
            low, high = np.searchsorted(vas, np.array([mapping.start, mapping.end], dtype=np.uint64))
            inside[low:high] = True
    return vas[inside]
