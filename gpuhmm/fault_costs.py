"""What faults a device's accesses cost, by how its driver asks: an experiment over the fault model.

A space is filled in some way, the device touches pages of it, and a driver asks for them in ranges of some
size, each with the documented loop.  Counted is what a kernel would have to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from errno import EBUSY
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuhmm.backends import hmm_range_fault
from gpuhmm.driver import REQUESTS
from gpuhmm.errors import HmmError
from gpuhmm.fault.burst import handle_mm_fault_range
from gpuhmm.fault_model import FaultModel
from gpuhmm.faults import FAULT_FLAG_WRITE
from gpuhmm.machine.filemap import File
from gpuhmm.machine.physical import PhysicalMemory
from gpuhmm.memory import fork
from gpuhmm.ranges import HmmRange, RangeStats
from gpuhmm.space import AddressSpace
from gpuhmm.vma import VM_HUGEPAGE, VM_READ, VM_SHARED, VM_WRITE, Vma

if TYPE_CHECKING:
    from gpuhmm.profile import KernelProfile

#: Where the area of every experiment begins: a border of 512 GiB.
BASE = 1 << 40

_PMD_PAGES = 512
_RW = VM_READ | VM_WRITE


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


Fill = Callable[[AddressSpace, int], None]


def _untouched(mm: AddressSpace, npages: int) -> None:
    mm.mmap(BASE, BASE + npages * 4096, _RW)


def _untouched_huge(mm: AddressSpace, npages: int) -> None:
    mm.mmap(BASE, BASE + npages * 4096, _RW | VM_HUGEPAGE)


def _zero(mm: AddressSpace, npages: int) -> None:
    _untouched(mm, npages)
    _fault_all(mm, npages, "read")


def _zero_huge(mm: AddressSpace, npages: int) -> None:
    _untouched_huge(mm, npages)
    _fault_all(mm, npages, "read")


def _written(mm: AddressSpace, npages: int) -> None:
    _untouched(mm, npages)
    _fault_all(mm, npages, "write")


def _forked(mm: AddressSpace, npages: int) -> None:
    _written(mm, npages)
    fork(mm)


def _forked_huge(mm: AddressSpace, npages: int) -> None:
    _untouched_huge(mm, npages)
    _fault_all(mm, npages, "write")
    fork(mm)


def _file(mm: AddressSpace, npages: int, flags: int) -> None:
    file = File(mm.memory, npages * 4096, "regular")
    mm.mmap(BASE, BASE + npages * 4096, flags, file=file)
    _fault_all(mm, npages, "read")


def _private_file(mm: AddressSpace, npages: int) -> None:
    _file(mm, npages, _RW)


def _shared_file(mm: AddressSpace, npages: int) -> None:
    _file(mm, npages, _RW | VM_SHARED)


@dataclass(frozen=True)
class Layout:
    """One way to fill a space: how, and in words."""

    fill: Fill
    words: str


LAYOUTS = {
    "untouched": Layout(_untouched, "anonymous memory that nobody touched"),
    "untouched-huge": Layout(_untouched_huge, "the same, with MADV_HUGEPAGE"),
    "zero": Layout(_zero, "anonymous memory that was read only: the zero page everywhere"),
    "zero-huge": Layout(_zero_huge, "the same, with MADV_HUGEPAGE: the huge zero page"),
    "written": Layout(_written, "anonymous memory that was written"),
    "forked": Layout(_forked, "the same, shared with a child since: copy on write"),
    "forked-huge": Layout(_forked_huge, "huge pages shared with a child: copy on write, after a split"),
    "private-file": Layout(
        _private_file, "a writable private mapping of a file in the page cache, only read so far"
    ),
    "shared-file": Layout(
        _shared_file, "a writable shared mapping of a file in the page cache, only read so far"
    ),
}


def _fault_all(mm: AddressSpace, npages: int, request: str) -> None:
    vma = mm.vmas.lookup(BASE)
    assert vma is not None
    flags = FAULT_FLAG_WRITE if request == "write" else 0
    with mm.mmap_lock.write():
        handle_mm_fault_range(mm, vma, BASE, BASE + npages * 4096, flags)


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
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)} (got {layout!r})")
    if request not in ("read", "write"):
        raise ValueError(f"request must be read or write (got {request!r})")
    if npages < 1 or range_pages < 1:
        raise ValueError(f"npages and range_pages must be at least 1 (got {npages}, {range_pages})")
    touched = touched_pages(pattern, npages, seed)
    model = _CountingModel()
    mm = AddressSpace(kernel=kernel, faults=model, memory=PhysicalMemory())
    LAYOUTS[layout].fill(mm, npages)
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
