"""Faults in bulk against the same faults one by one: results, entries, page state, order of frames."""

from __future__ import annotations

import numpy as np
import pytest

import gpuhmm
from gpuhmm.memory import (
    PhysicalMemory,
    change_prot_numa,
    check_invariants,
    fork,
    memory_failure,
    store,
    swap_out,
)
from gpuhmm.memory.fault.burst import handle_mm_fault_range
from gpuhmm.memory.fault.handle import handle_mm_fault
from gpuhmm.memory.fault.model import FaultModel
from gpuhmm.mm.handler import FAULT_FLAG_REMOTE, FAULT_FLAG_WRITE, VM_FAULT_ERROR, VM_FAULT_OOM
from gpuhmm.mm.vma import VM_HUGEPAGE, VM_READ, VM_SHARED, VM_WRITE

BASE = 1 << 40
PAGE = 4096
HUGE = 2 << 20
RW = VM_READ | VM_WRITE
READ, WRITE = FAULT_FLAG_REMOTE, FAULT_FLAG_REMOTE | FAULT_FLAG_WRITE


def one_by_one(mm, vma, start, end, flags):
    calls, ret = 0, 0
    for va in range(start, end, PAGE):
        calls, ret = calls + 1, handle_mm_fault(mm, vma, va, flags)
        if ret & VM_FAULT_ERROR:
            break
    return calls, ret


def state(mm):
    """Return everything that may differ: tables by PFN, page descriptors, free frames, swap."""
    pfns, pages = mm.tables()
    order = np.argsort(pfns)
    described = {}
    for key, section in mm.memory.pages.sections.items():
        for name in section.__slots__:
            values = getattr(section, name)
            for i in np.flatnonzero(values).tolist():
                described[key << 15 | i, name] = int(values[i])
    free = mm.memory.free
    return (
        pfns[order].tolist(),
        pages[order].tobytes(),
        described,
        free._firsts,
        free._ends,
        free.left,
        mm.memory.nr_used,
        mm.huge_zero_pfn,
        mm.subscriptions.invalidations,
    )


def make(npages, flags=RW, page_shift=12, start=BASE, **limits):
    memory = PhysicalMemory(**limits)
    mm = gpuhmm.AddressSpace(kernel="v6.1", memory=memory)
    mm.mmap(start, start + npages * PAGE, flags, page_shift)
    mm.notifier(0, mm.task_size)
    return mm


def nothing(mm):
    pass


def some_written(mm):
    for page in (0, 3, 511, 512, 700, 1500):
        store(mm, BASE + page * PAGE, page)


def some_read(mm):
    handle_mm_fault_range(mm, mm.vmas.lookup(BASE), BASE + 100 * PAGE, BASE + 900 * PAGE, READ)


def forked(mm):
    some_written(mm)
    fork(mm)


def swapped_poisoned_and_hinted(mm):
    some_written(mm)
    swap_out(mm, BASE, BASE + 4 * PAGE)
    memory_failure(mm, BASE + 700 * PAGE)
    change_prot_numa(mm, BASE + 511 * PAGE, BASE + 513 * PAGE)


def fragmented(mm):
    for pfn in [*range(10, 3000, 7), *range(3100, 6000, 300)]:
        mm.memory.reserve(pfn, pfn + 2)


PREPARATIONS = [nothing, some_written, some_read, forked, swapped_poisoned_and_hinted, fragmented]
AREAS = {
    "anonymous": {"npages": 2500},
    "huge": {"npages": 2500, "flags": RW | VM_HUGEPAGE},
    "huge-unaligned": {"npages": 2500, "flags": RW | VM_HUGEPAGE, "start": BASE - 5 * PAGE},
    "shared": {"npages": 2500, "flags": RW | VM_SHARED},
    "read-only": {"npages": 2500, "flags": VM_READ},
    "out-of-memory": {"npages": 2500, "frames": 3600},
    "huge-out-of-memory": {"npages": 2500, "flags": RW | VM_HUGEPAGE, "frames": 1700},
    "hugetlb": {"npages": 2560, "page_shift": 21, "hugetlb_pages": 3},
}


@pytest.mark.parametrize("flags", [READ, WRITE], ids=["read", "write"])
@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("prepare", PREPARATIONS, ids=lambda prepare: prepare.__name__)
def test_a_burst_is_what_its_calls_are(prepare, area, flags):
    outcomes = []
    for way in (one_by_one, handle_mm_fault_range):
        mm = make(**AREAS[area])
        if area != "read-only" and area != "hugetlb":
            prepare(mm)
        vma = mm.vmas.find(BASE)
        done = []
        for start, npages in ((40, 300), (1, 1100), (600, 1900)):
            first = BASE + start * PAGE
            done.append(way(mm, vma, first, min(first + npages * PAGE, vma.end), flags))
        outcomes.append((done, state(mm)))
        check_invariants(mm.memory)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0][0][0] > 0


def test_a_hole_of_many_tables_is_filled_as_one_by_one():
    npages = 40 * 512 + 17
    outcomes = []
    for way in (one_by_one, handle_mm_fault_range):
        mm = make(npages)
        done = way(mm, mm.vmas.lookup(BASE), BASE + 3 * PAGE, BASE + npages * PAGE, WRITE)
        outcomes.append((done, state(mm)))
        check_invariants(mm.memory)
    assert outcomes[0] == outcomes[1]


def test_memory_that_ends_in_the_middle_ends_the_burst_there():
    mm = make(1 << 20, frames=100_000)
    calls, ret = handle_mm_fault_range(mm, mm.vmas.lookup(BASE), BASE, BASE + (4 << 30), WRITE)
    assert ret == VM_FAULT_OOM
    # a PUD and a PMD table; leaf tables of 512 pages each; the failing call counts too
    tables = -(-(100_000 - 2) // 513)
    assert calls == 100_000 - 2 - tables + 1
    assert mm.memory.free.left == 0
    check_invariants(mm.memory)


class Watcher(FaultModel):
    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_mm_fault(self, mm, vma, va, flags):
        self.seen.append(va)
        return super().handle_mm_fault(mm, vma, va, flags)


def test_a_handler_that_watches_sees_every_call():
    watcher = Watcher()
    mm = gpuhmm.AddressSpace(faults=watcher)
    mm.mmap(BASE, BASE + 1000 * PAGE)
    seen = gpuhmm.range_fault(mm, BASE, BASE + 1000 * PAGE, request="write", backend="cpu")
    assert watcher.seen == list(range(BASE, BASE + 1000 * PAGE, PAGE))
    assert seen.stats.faults == 1000


@pytest.mark.parametrize("request_", ["read", "write"])
def test_a_walk_over_a_large_hole_counts_every_fault(request_):
    npages = 1 << 19  # 2 GiB
    mm = make(npages)
    seen = gpuhmm.range_fault(mm, BASE, BASE + npages * PAGE, request=request_, backend="cpu")
    assert seen.stats.faults == npages
    # the hole of each 1 GiB was one extent, but a table that the first made ends the next
    assert seen.valid.all()
    assert len(np.unique(seen.pfns)) == (npages if request_ == "write" else 1)
