"""Page frames for the fault model: which PFNs are free, handed out in a reproducible order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuhmm import x86
from gpuhmm.tables import Words

if TYPE_CHECKING:
    from gpuhmm.space import AddressSpace

#: Gaps that are kept; in a space of random PFNs there may be millions, most of them tiny.
_MAX_GAPS = 1024


class Frames:
    """Free frames of one address space, lowest first.

    A frame is free if no entry, table, zero page or device-private range of ``mm`` had it when this
    was made, and it does not exceed ``highest_memmap_pfn``.  ``limit`` is how many 4 KiB frames may be
    handed out in all, None for as many as there are.
    """

    def __init__(self, mm: AddressSpace, limit: int | None = None) -> None:
        self.left = limit
        self._gaps = _gaps(_used(mm), mm.highest_memmap_pfn + 1)

    def take(self, order: int = 0) -> int | None:
        """Return the first of ``2**order`` free frames, aligned to as many; None if there are none."""
        count = 1 << order
        if self.left is not None and self.left < count:
            return None
        for i, (first, end) in enumerate(self._gaps):
            pfn = -(-first // count) * count
            if pfn + count > end:
                continue
            rest = [(first, pfn), (pfn + count, end)]
            self._gaps[i : i + 1] = [gap for gap in rest if gap[0] < gap[1]]
            if self.left is not None:
                self.left -= count
            return pfn
        return None


def _used(mm: AddressSpace) -> npt.NDArray[np.uint64]:
    """Return uint64[n, 2], the sorted PFN ranges ``[first, end)`` that are taken."""
    tables = mm.page_tables
    known = np.array([*tables.where, *tables.unreached, 0, mm.zero_pfn], dtype=np.uint64)
    parts = [_ranges(known, 1), _ranges(_mapped(tables.leaf), 1), _ranges(_mapped(tables.upper), 1 << 18)]
    if mm.huge_zero_pfn < x86.MAX_PFN:
        parts.append(_ranges(np.array([mm.huge_zero_pfn], dtype=np.uint64), 512))
    if len(mm.device_private):
        parts.append(mm.device_private[:, :2])
    taken = np.concatenate(parts)
    return taken[np.argsort(taken[:, 0], kind="stable")]


def _mapped(entries: Words) -> Words:
    """Return the PFNs of all entries that are not zero, whatever they are."""
    entries = entries[entries != 0]
    upright = np.where((entries & x86.PAGE_PRESENT) == 0, ~entries, entries)
    return np.unique((upright & x86.PTE_PFN_MASK) >> x86.PAGE_SHIFT)


def _ranges(pfns: Words, pages: int) -> Words:
    return np.stack([pfns, pfns + np.uint64(pages)], axis=1)


def _gaps(taken: Words, top: int) -> list[tuple[int, int]]:
    """Return the largest gaps between sorted ranges below ``top``, by address."""
    ends = np.maximum.accumulate(taken[:, 1])
    firsts = np.concatenate((ends, [np.uint64(0)]))[:-1]
    befores = taken[1:, 0]
    gaps = [(int(a), int(b)) for a, b in zip(firsts[:-1], befores, strict=True) if b > a and a < top]
    gaps.append((int(ends[-1]), top))
    gaps = [(first, min(end, top)) for first, end in gaps if first < min(end, top)]
    return sorted(sorted(gaps, key=lambda gap: gap[0] - gap[1])[:_MAX_GAPS])
