"""The ranges of amdkfd: parts of address spaces with a notifier each and the time of their last validation.

Source: drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_create_unregistered_range,
svm_range_get_range_boundaries, svm_range_split_new, svm_range_cpu_invalidate_pagetables, svm_range_evict,
svm_range_unmap_from_cpu, svm_range_unmap_split (006ad514a50c of torvalds/linux, about v6.12).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass

from gpuhmm.coalesce.service import FaultService
from gpuhmm.mm.notifier import MMU_NOTIFY_UNMAP, MmuIntervalNotifier, MmuNotifierRange
from gpuhmm.mm.vma import Vma

#: Alignment and size of what a fault creates: 512 pages.
PRANGE_SIZE = 1 << 21

_NEVER = -(1 << 62)


@dataclass(eq=False)
class Prange:
    """``[start, end)`` bytes of a space; ``validated`` is when it was last mapped, in ns."""

    space: int
    start: int
    end: int
    notifier: MmuIntervalNotifier
    validated: int = _NEVER


class Pranges:
    """The ranges of all spaces of a service, which do not overlap.

    With ``registered`` the device's areas are ranges from the beginning, split at multiples of so many bytes.
    """

    def __init__(self, service: FaultService, registered: int = 0) -> None:
        self.service = service
        self._of: list[list[Prange]] = [[] for _ in service.spaces]
        self._starts: list[list[int]] = [[] for _ in service.spaces]
        self._deferred: list[tuple[Prange, bool]] = []
        for area in service.areas.areas if registered else ():
            start = area.start
            while start < area.end:
                end = min(area.end, (start & -registered) + registered)
                self._add(area.space, start, end)
                start = end

    def __len__(self) -> int:
        return sum(len(pranges) for pranges in self._of)

    def ranges(self, space: int) -> list[tuple[int, int]]:
        """Return the ranges of a space by address: (start, end) in bytes."""
        return [(prange.start, prange.end) for prange in self._of[space]]

    def find(self, space: int, va: int) -> Prange | None:
        """Return the range that holds ``va``, or None."""
        index = bisect_right(self._starts[space], va) - 1
        if index < 0:
            return None
        prange = self._of[space][index]
        return prange if va < prange.end else None

    def create(self, space: int, va: int, vma: Vma) -> Prange:
        """Return a new range around ``va``: 2 MiB, aligned, cut at its VMA and at the ranges next to it."""
        start = max(vma.start, va & -PRANGE_SIZE)
        end = min(vma.end, (va & -PRANGE_SIZE) + PRANGE_SIZE)
        index = bisect_right(self._starts[space], va)
        if index < len(self._of[space]):
            end = min(end, self._of[space][index].start)
        if index:
            start = max(start, self._of[space][index - 1].end)
        return self._add(space, start, end)

    def flush_deferred(self) -> None:
        """Fit the notifiers to what unmaps left of their ranges (svm_range_deferred_list_work)."""
        while self._deferred:
            prange, gone = self._deferred.pop()
            prange.notifier.remove()
            if not gone:
                prange.notifier = self._notifier(prange)

    def _add(self, space: int, start: int, end: int) -> Prange:
        prange = Prange(space, start, end, None)  # type: ignore[arg-type]
        prange.notifier = self._notifier(prange)
        insort(self._of[space], prange, key=lambda other: other.start)
        insort(self._starts[space], start)
        return prange

    def _notifier(self, prange: Prange) -> MmuIntervalNotifier:
        def invalidate(notifier: MmuIntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
            notifier.set_seq(cur_seq)
            low, high = max(range_.start, prange.start), min(range_.end, prange.end)
            if low < high:
                self.service.take_away(prange.space, low, high)
                if range_.event == MMU_NOTIFY_UNMAP:
                    self._unmap(prange, low, high)
            return True

        return self.service.spaces[prange.space].notifier(prange.start, prange.end, invalidate)

    def _unmap(self, prange: Prange, low: int, high: int) -> None:
        """Cut what was unmapped out of a range; it keeps its time, a tail that is new has none."""
        pranges, starts = self._of[prange.space], self._starts[prange.space]
        index = pranges.index(prange)
        del pranges[index], starts[index]
        start, end = prange.start, prange.end
        gone = low == start and high == end
        # In here no notifier can be taken out: the old one stays until the next fault, as with the kernel's
        # deferred work.
        if all(prange is not other for other, _ in self._deferred):
            self._deferred.append((prange, gone))
        elif gone:
            self._deferred = [(other, was or other is prange) for other, was in self._deferred]
        if gone:
            # Nothing of it may be invalidated again.
            prange.end = prange.start
            return
        if low > start:
            prange.end = low
            if high < end:
                self._add(prange.space, high, end)
        else:
            prange.start = high
        index = bisect_right(starts, prange.start)
        pranges.insert(index, prange)
        starts.insert(index, prange.start)
