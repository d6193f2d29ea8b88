"""Free page frames: handed out lowest first, so that the order is the same in every run.

Linux's buddy allocator gives no order that a program may rely on; what counts here is that an order
exists, that blocks are aligned, and that memory can run out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from gpuhmm.mm.tables import Words

#: Gaps between taken frames that are kept; among random PFNs there may be millions, most of them tiny.
_MAX_GAPS = 1024


class FreeFrames:
    """The free frames below ``top``: all that ``taken``, uint64[n, 2] of sorted ``[first, end)``, leaves.

    ``limit`` is how many 4 KiB frames may be in use that were handed out, None for as many as there are.
    """

    def __init__(self, taken: Words, top: int, limit: int | None = None) -> None:
        self.left = limit
        self._firsts: list[int] = []
        self._ends: list[int] = []
        for first, end in _gaps(taken, top):
            self._firsts.append(first)
            self._ends.append(end)

    def take(self, order: int = 0) -> int | None:
        """Return the first of ``2**order`` free frames, aligned to as many; None if there are none."""
        count = 1 << order
        if self.left is not None and self.left < count:
            return None
        for i, (first, end) in enumerate(zip(self._firsts, self._ends, strict=True)):
            pfn = -(-first // count) * count
            if pfn + count <= end:
                self._cut(i, pfn, pfn + count)
                if self.left is not None:
                    self.left -= count
                return pfn
        return None

    def peek_run(self, most: int) -> tuple[int, int]:
        """Return (first, count): what the next ``count <= most`` calls of ``take(0)`` would give."""
        if not self._firsts:
            return 0, 0
        first = self._firsts[0]
        count = min(most, self._ends[0] - first)
        return first, count if self.left is None else min(count, self.left)

    def take_run(self, count: int) -> None:
        """Take the first ``count`` frames that :meth:`peek_run` showed."""
        if not count:
            return
        first = self._firsts[0]
        self._cut(0, first, first + count)
        if self.left is not None:
            self.left -= count

    def take_blocks(self, order: int, most: int) -> tuple[int, int]:
        """Take what the next ``count <= most`` ``take(order)`` give, side by side: (first, count)."""
        size = 1 << order
        most = most if self.left is None else min(most, self.left // size)
        for i, (first, end) in enumerate(zip(self._firsts, self._ends, strict=True)):
            pfn = -(-first // size) * size
            count = min(most, max(end - pfn, 0) // size)
            if count:
                self._cut(i, pfn, pfn + count * size)
                if self.left is not None:
                    self.left -= count * size
                return pfn, count
        return 0, 0

    def reserve(self, first: int, end: int) -> None:
        """Take ``[first, end)`` out, as far as it is free: somebody uses these frames already."""
        i = bisect_right(self._ends, first)
        while i < len(self._firsts) and self._firsts[i] < end:
            low, high = max(first, self._firsts[i]), min(end, self._ends[i])
            i += self._cut(i, low, high)

    def give(self, pfn: int, order: int = 0) -> None:
        """Take ``2**order`` frames back.  ValueError if one of them is free already."""
        first, end = pfn, pfn + (1 << order)
        i = bisect_left(self._firsts, first)
        if (i < len(self._firsts) and self._firsts[i] < end) or (i and self._ends[i - 1] > first):
            raise ValueError(f"frames must not be freed twice (got [{first:#x}, {end:#x}))")
        if self.left is not None:
            self.left += end - first
        joins_right = i < len(self._firsts) and self._firsts[i] == end
        if i and self._ends[i - 1] == first:
            self._ends[i - 1] = self._ends[i] if joins_right else end
            if joins_right:
                del self._firsts[i], self._ends[i]
        elif joins_right:
            self._firsts[i] = first
        else:
            self._firsts.insert(i, first)
            self._ends.insert(i, end)

    def is_free(self, pfn: int) -> bool:
        """True for a frame that could be handed out."""
        i = bisect_right(self._firsts, pfn)
        return bool(i) and pfn < self._ends[i - 1]

    def _cut(self, i: int, low: int, high: int) -> int:
        """Take ``[low, high)`` out of gap ``i``; return how many gaps are left of it."""
        first, end = self._firsts[i], self._ends[i]
        rest = [(a, b) for a, b in ((first, low), (high, end)) if a < b]
        self._firsts[i : i + 1] = [a for a, _ in rest]
        self._ends[i : i + 1] = [b for _, b in rest]
        return len(rest)


def taken_ranges(parts: Iterable[tuple[Words, int]]) -> Words:
    """Return uint64[n, 2], sorted: ``[pfn, pfn + count)`` of every PFN of every (PFNs, count)."""
    rows = [np.stack([pfns, pfns + np.uint64(count)], axis=1) for pfns, count in parts]
    taken: Words = np.concatenate(rows)
    return taken[np.argsort(taken[:, 0], kind="stable")]


def _gaps(taken: npt.NDArray[np.uint64], top: int) -> list[tuple[int, int]]:
    """Return the largest gaps between sorted ranges below ``top``, by address."""
    ends = np.maximum.accumulate(taken[:, 1])
    firsts, befores = ends[:-1], taken[1:, 0]
    open_ = (befores > firsts) & (firsts < np.uint64(top))
    gaps = [(int(a), min(int(b), top)) for a, b in zip(firsts[open_], befores[open_], strict=True)]
    if ends[-1] < top:
        gaps.append((int(ends[-1]), top))
    return sorted(sorted(gaps, key=lambda gap: gap[0] - gap[1])[:_MAX_GAPS])
