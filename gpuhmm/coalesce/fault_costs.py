"""What faults a device's accesses cost, by how its driver asks: an experiment over the fault model.

A space is filled in some way, the device touches pages of it, and a driver asks for them in ranges of some
size, each with the documented loop.  Counted is what a kernel would have to do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from errno import EBUSY
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.layouts import layout_named
from gpuhmm.errors import HmmError
from gpuhmm.hmm.backends import hmm_range_fault
from gpuhmm.hmm.loop import REQUESTS
from gpuhmm.hmm.ranges import HmmRange, RangeStats
from gpuhmm.memory.fault.burst import handle_mm_fault_range
from gpuhmm.memory.fault.model import FaultModel
from gpuhmm.memory.pages.physical import PhysicalMemory
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.vma import Vma

if TYPE_CHECKING:
    from gpuhmm.mm.profile import KernelProfile

#: Where the area of every experiment begins: a border of 512 GiB.
BASE = 1 << 40

_PMD_PAGES = 512


class _CountingModel(FaultModel):
    """The model, counting the faults at pages that nobody asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: npt.NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
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

    ``ranges`` that were asked for; ``calls`` of hmm_range_fault; ``retries``, calls that returned -EBUSY;
    ``walks`` of page tables, restarts included; ``faults``, calls of handle_mm_fault, of which ``unasked``
    at pages that nobody asked for; ``invalidations`` of the driver's own notifier; ``mapped`` pages.
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
    ``whole_ranges`` for all of it.  ValueError for an unknown layout, pattern or request, and for sizes
    below one page.
    """
    filled = layout_named(layout)
    if request not in ("read", "write"):
        raise ValueError(f"request must be read or write (got {request!r})")
    if npages < 1 or range_pages < 1:
        raise ValueError(f"npages and range_pages must be at least 1 (got {npages}, {range_pages})")
    touched = touched_pages(pattern, npages, seed)
    model = _CountingModel()
    mm = AddressSpace(kernel=kernel, faults=model, memory=PhysicalMemory())
    filled.fill(mm, BASE, BASE + npages * 4096)
    asked = np.zeros(npages, dtype=np.bool_)
    asked[touched] = True
    if whole_ranges:
        asked = np.repeat(np.logical_or.reduceat(asked, np.arange(0, npages, range_pages)), range_pages)[
            :npages
        ]
    model.asked, model.unasked = asked, 0
    return _serve(mm, model, asked, len(touched), request, range_pages, backend)


def _serve(
    mm: AddressSpace,
    model: _CountingModel,
    asked: npt.NDArray[np.bool_],
    touched: int,
    request: str,
    range_pages: int,
    backend: str,
) -> FaultCosts:
    npages = len(asked)
    notifier = mm.notifier(BASE, BASE + npages * 4096)
    before = mm.subscriptions.notified
    stats = RangeStats()
    ranges = calls = retries = mapped = 0
    started = time.perf_counter()
    for first in range(0, npages, range_pages):
        pages = asked[first : first + range_pages]
        if not pages.any():
            continue
        ranges += 1
        requests = np.where(pages, np.uint64(REQUESTS[request]), np.uint64(0))
        start, end = BASE + (first << 12), BASE + ((first + len(pages)) << 12)
        while True:
            calls += 1
            range_ = HmmRange(
                notifier,
                start,
                end,
                requests.copy(),
                notifier_seq=notifier.read_begin(),
                pfn_flags_mask=REQUESTS["write"],
                stats=stats,
            )
            ret = hmm_range_fault(range_, backend=backend)
            if ret == 0 and not notifier.read_retry(range_.notifier_seq):
                break
            if ret not in (0, -EBUSY):
                raise HmmError.of(ret, start, end)
            retries += 1
        mapped += int(np.count_nonzero(range_.hmm_pfns >> np.uint64(63)))
    seconds = time.perf_counter() - started
    invalidations = mm.subscriptions.notified - before
    notifier.remove()
    return FaultCosts(
        request=request,
        range_pages=range_pages,
        touched=touched,
        ranges=ranges,
        calls=calls,
        retries=retries,
        walks=stats.walks,
        faults=stats.faults,
        unasked=model.unasked,
        invalidations=invalidations,
        mapped=mapped,
        seconds=round(seconds, 6),
    )
