"""GPU SVM: ranges of fixed sizes, and one notifier for all that lie in an aligned piece of the address space.

Source: drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_notifier_alloc, drm_gpusvm_range_find,
drm_gpusvm_notifier_invalidate, drm_gpusvm_range_remove (0542972950ef of torvalds/linux, 2026);
drivers/gpu/drm/xe/xe_svm.c:xe_svm_invalidate, xe_svm_garbage_collector (0131514f9789, about v6.18).
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuhmm.coalesce.service import FaultService
from gpuhmm.mm.notifier import MMU_NOTIFY_UNMAP, MmuIntervalNotifier, MmuNotifierRange

#: Sizes of ranges in bytes, largest first, and what they are called (fault_chunk_sizes of xe_svm.c).
CHUNKS = {1 << 21: "2M", 1 << 16: "64K", 1 << 12: "4K"}

_BLOCK_SHIFT = 21


@dataclass(eq=False)
class GpuSvmRange:
    """``[start, end)`` bytes of a space, one of CHUNKS; ``valid`` while its pages are mapped."""

    space: int
    start: int
    end: int
    notifier: MmuIntervalNotifier
    valid: bool = False
    unmapped: bool = False

    @property
    def size(self) -> int:
        """Bytes of the range."""
        return self.end - self.start


class GpuSvm:
    """The ranges and notifiers of all spaces of a service."""

    def __init__(self, service: FaultService, notifier_size: int) -> None:
        self.service = service
        self._size = notifier_size
        self._notifiers: dict[tuple[int, int], MmuIntervalNotifier] = {}
        # By space and block of 2 MiB, the ranges in it by start: no range is larger than a block.
        self._blocks: dict[tuple[int, int], dict[int, GpuSvmRange]] = {}
        self._garbage: list[GpuSvmRange] = []

    def ranges(self, space: int) -> list[tuple[int, int]]:
        """Return the ranges of a space by address: (start, size) in bytes."""
        found = [r for (of, _), block in self._blocks.items() if of == space for r in block.values()]
        return sorted((range_.start, range_.size) for range_ in found)

    def find(self, space: int, va: int) -> GpuSvmRange | None:
        """Return the range that holds ``va``, or None."""
        block = self._blocks.get((space, va >> _BLOCK_SHIFT))
        if block is None:
            return None
        for size in CHUNKS:
            range_ = block.get(va & -size)
            if range_ is not None and va < range_.end:
                return range_
        return None

    def overlaps(self, space: int, start: int, end: int) -> bool:
        """True if a range has pages of ``[start, end)``, which lie in one block."""
        block = self._blocks.get((space, start >> _BLOCK_SHIFT), {})
        return any(range_.start < end and start < range_.end for range_ in block.values())

    def insert(self, space: int, va: int, size: int) -> GpuSvmRange:
        """Return a new range of ``size`` bytes around ``va``, which overlaps none."""
        start = va & -size
        range_ = GpuSvmRange(space, start, start + size, self.notifier(space, va))
        self._blocks.setdefault((space, va >> _BLOCK_SHIFT), {})[start] = range_
        return range_

    def notifier(self, space: int, va: int) -> MmuIntervalNotifier:
        """Return the notifier of the piece that holds ``va``."""
        low = va & -self._size
        if (space, low) not in self._notifiers:
            self._notifiers[space, low] = self._new_notifier(space, low, low + self._size)
        return self._notifiers[space, low]

    def _new_notifier(self, space: int, start: int, end: int) -> MmuIntervalNotifier:
        def invalidate(notifier: MmuIntervalNotifier, event: MmuNotifierRange, cur_seq: int) -> bool:
            notifier.set_seq(cur_seq)
            self.service.batch.invalidations += 1
            for range_ in self._between(space, max(start, event.start), min(end, event.end)):
                # A range goes as a whole, however little of it is invalidated.
                if range_.valid:
                    count = self.service.areas.erase(space, range_.start, range_.end)
                    self.service.batch.invalidated_pages += count
                    range_.valid = False
                if event.event == MMU_NOTIFY_UNMAP and not range_.unmapped:
                    range_.unmapped = True
                    self._garbage.append(range_)
            return True

        return self.service.spaces[space].notifier(start, end, invalidate)

    def _between(self, space: int, low: int, high: int) -> list[GpuSvmRange]:
        first, past = low >> _BLOCK_SHIFT, ((high - 1) >> _BLOCK_SHIFT) + 1
        if past - first < len(self._blocks):
            blocks = [self._blocks.get((space, number), {}) for number in range(first, past)]
        else:
            blocks = [b for (of, number), b in self._blocks.items() if of == space and first <= number < past]
        return [r for block in blocks for r in block.values() if r.start < high and low < r.end]

    def collect_garbage(self) -> None:
        """Remove the ranges of which something was unmapped, and notifiers that have none left."""
        while self._garbage:
            range_ = self._garbage.pop()
            key = (range_.space, range_.start >> _BLOCK_SHIFT)
            del self._blocks[key][range_.start]
            if not self._blocks[key]:
                del self._blocks[key]
            low = range_.start & -self._size
            if not self._between(range_.space, low, low + self._size):
                self._notifiers.pop((range_.space, low)).remove()
