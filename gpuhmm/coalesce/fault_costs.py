"""What faults a device's accesses cost, by how its driver asks: an experiment of one batch.

A space is filled in some way, a device touches pages of it all at once, and the free driver asks for them in
aligned ranges of some size.  Counted is what a kernel would have to do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.access import ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.areas import Area, DeviceAreas
from gpuhmm.coalesce.device.recorded import RecordedDevice
from gpuhmm.coalesce.drivers.free import FreeDriver, FreeSettings
from gpuhmm.coalesce.run import coalesce
from gpuhmm.coalesce.spaces import spaces_over
from gpuhmm.coalesce.timeline import Timeline
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.memory.fault.burst import handle_mm_fault_range
from gpuhmm.memory.fault.model import FaultModel
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.profile import KernelProfile
from gpuhmm.mm.vma import Vma

#: Where the area of every experiment begins: a border of 512 GiB.
BASE = 1 << 40

_PMD_PAGES = 512
_ACCESSES = {"read": ACCESS_READ, "write": ACCESS_WRITE}
#: A range is asked for until its answer is not stale: 10^9 ms of the model's time never pass.
_NO_TIMEOUT_MS = 10**9


class _CountingModel(FaultModel):
    """The model, counting the faults at pages that nobody asked for."""

    def __init__(self, asked: npt.NDArray[np.bool_]) -> None:
        super().__init__()
        self.asked = asked
        self.unasked = 0

    def handle_mm_fault(self, mm: AddressSpace, vma: Vma, va: int, flags: int) -> int:
        """Fault one page and count."""
        self._count(va, 1)
        return super().handle_mm_fault(mm, vma, va, flags)

    def handle_mm_fault_range(
        self, mm: AddressSpace, vma: Vma, start: int, end: int, flags: int
    ) -> tuple[int, int]:
        """Fault the pages of ``[start, end)`` in bulk and count."""
        calls, ret = handle_mm_fault_range(mm, vma, start, end, flags)
        self._count(start, calls)
        return calls, ret

    def _count(self, va: int, calls: int) -> None:
        first = (va - BASE) >> 12
        self.unasked += calls - int(np.count_nonzero(self.asked[first : first + calls]))


def touched_pages(pattern: str, npages: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the pages that a device touches, ascending: int64[n].

    ``pattern``: ``all``; ``every:N`` every N-th page; ``random:N`` N different pages; ``last-of-pmd`` and
    ``first-of-pmd`` one page of every 2 MiB.  ValueError for anything else.
    """
    name, _, number = pattern.partition(":")
    if name == "all" and not number:
        return np.arange(npages)
    if name in ("first-of-pmd", "last-of-pmd") and not number:
        first = np.arange(0, npages, _PMD_PAGES)
        return first if name == "first-of-pmd" else np.minimum(first + _PMD_PAGES - 1, npages - 1)
    if name in ("every", "random") and number.isdigit() and int(number) > 0:
        if name == "every":
            return np.arange(0, npages, int(number))
        rng = np.random.default_rng(seed)
        return np.sort(rng.choice(npages, size=min(int(number), npages), replace=False))
    raise ValueError(
        f"touched pages must be all, every:N, random:N, first-of-pmd or last-of-pmd (got {pattern!r})"
    )


@dataclass(frozen=True)
class FaultCosts:
    """What one request and one range size cost, in all.

    ``ranges`` that were asked for; ``calls`` of hmm_range_fault; ``retries``, calls that returned -EBUSY or
    were stale afterwards; ``walks`` of page tables, restarts included; ``faults``, calls of handle_mm_fault,
    of which ``unasked`` at pages that nobody asked for; ``invalidations`` of the driver's own notifiers, one
    a range; ``mapped`` pages that were asked for.
    """

    request: str
    range_pages: int
    touched: int
    ranges: int
    calls: int
    retries: int
    walks: int
    faults: int
    unasked: int
    invalidations: int
    mapped: int
    seconds: float


def fault_costs(
    layout: str,
    npages: int,
    pattern: str,
    request: str,
    range_pages: int,
    *,
    whole_ranges: bool = False,
    kernel: str | KernelProfile = "v6.1",
    backend: str = "cpu",
    seed: int = 0,
) -> FaultCosts:
    """Return what it costs to serve a device's accesses in ranges of ``range_pages``, aligned to their size.

    Every range that holds a touched page is asked for once: for the touched pages only, or with
    ``whole_ranges`` for all of it.  ValueError for an unknown layout, pattern or request, for less than one
    page, and for ranges that are no power of two or above 1 GiB.
    """
    if request not in _ACCESSES:
        raise ValueError(f"request must be read or write (got {request!r})")
    if npages < 1:
        raise ValueError(f"npages must be at least 1 (got {npages})")
    if not 1 <= range_pages <= 1 << 18 or range_pages & (range_pages - 1):
        raise ValueError(f"range_pages must be a power of two from 1 to 2^18 (got {range_pages})")
    touched = touched_pages(pattern, npages, seed)
    ranges = np.unique(touched // range_pages)
    asked = np.isin(np.arange(npages) // range_pages, ranges) if whole_ranges else np.zeros(npages, np.bool_)
    asked[touched] = True
    trace = FaultTrace.of(
        va=np.uint64(BASE) + (touched.astype(np.uint64) << np.uint64(12)),
        access=np.full(len(touched), _ACCESSES[request]),
    )
    areas = DeviceAreas([Area(0, BASE, BASE + (npages << 12))])
    (space,) = spaces_over(areas, layout, kernel)
    space.faults = model = _CountingModel(asked)
    settings = FreeSettings(
        batch=0,
        window=range_pages << 12,
        whole_window=whole_ranges,
        replay="once",
        timeout_ms=_NO_TIMEOUT_MS,
    )
    run = coalesce(
        RecordedDevice(trace, areas, buffer_entries=len(touched)),
        [space],
        FreeDriver(settings),
        backend=backend,
        timeline=Timeline(keep=False),
    )
    return FaultCosts(
        request=request,
        range_pages=range_pages,
        touched=len(touched),
        ranges=len(ranges),
        calls=run.totals["hmm_calls"],
        retries=run.totals["ebusy"] + run.totals["read_retries"],
        walks=run.totals["walks"],
        faults=run.totals["handle_mm_faults"],
        unasked=model.unasked,
        invalidations=run.totals["invalidations"],
        mapped=run.totals["pages_mapped"],
        seconds=round(run.seconds, 6),
    )
