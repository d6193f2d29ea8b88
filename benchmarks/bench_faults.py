"""How many handle_mm_fault a second the model serves in bursts, and how long a hole of 512 GiB takes.

    python benchmarks/bench_faults.py [--hole]

Each figure is the best of several runs in one process, by the clock and by the CPU time that it took:
on a machine with other work the two differ.  Page descriptors exist before the clock starts, as
Linux's memory map does after boot; page tables are made while it runs.  ``--hole`` needs about 6 GiB.
"""

from __future__ import annotations

import argparse
import gc
import time

import numpy as np

import gpuhmm
from gpuhmm.hmm.backends import resolve_backend
from gpuhmm.memory.fault.burst import handle_mm_fault_range
from gpuhmm.memory.fault.handle import handle_mm_fault
from gpuhmm.memory.pages.physical import PhysicalMemory
from gpuhmm.mm.handler import FAULT_FLAG_REMOTE, FAULT_FLAG_WRITE
from gpuhmm.mm.vma import VM_HUGEPAGE, VM_READ, VM_WRITE

BASE = 1 << 40
RW = VM_READ | VM_WRITE
READ, WRITE = FAULT_FLAG_REMOTE, FAULT_FLAG_REMOTE | FAULT_FLAG_WRITE
RUNS = 5


def space(npages: int, flags: int) -> gpuhmm.AddressSpace:
    """Return a space with one untouched area, on a machine whose page descriptors are in memory."""
    gc.collect()  # the space of the run before: spaces and machines refer to one another
    memory = PhysicalMemory()
    mm = gpuhmm.AddressSpace(kernel="v6.1", memory=memory)
    mm.mmap(BASE, BASE + npages * 4096, flags)
    first, count = memory.free.peek_run(npages + npages // 256 + 4096)
    memory.pages.reserve(first, count)
    memory.pages.fill(first, count, refcount=0, mapcount=0, flags=0, index=0)
    return mm


class Stopwatch:
    """Seconds by the clock and of CPU time between entry and exit."""

    def __enter__(self) -> Stopwatch:
        self.began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *unused: object) -> None:
        self.seconds = time.perf_counter() - self.began[0], time.process_time() - self.began[1]


def burst(npages: int, flags: int, area: int = RW, again: bool = False) -> tuple[float, float]:
    """Return the seconds of a fault at every page of an untouched area, or of a second one at each."""
    mm = space(npages, area)
    vma = mm.vmas.lookup(BASE)
    assert vma is not None
    if again:
        handle_mm_fault_range(mm, vma, BASE, BASE + npages * 4096, flags)
    with Stopwatch() as watch:
        calls, ret = handle_mm_fault_range(mm, vma, BASE, BASE + npages * 4096, flags)
    assert (calls, ret) == (npages, 0)
    return watch.seconds


def one_by_one(npages: int, flags: int) -> tuple[float, float]:
    """Return the seconds of the same faults called one by one."""
    mm = space(npages, RW)
    vma = mm.vmas.lookup(BASE)
    assert vma is not None
    with Stopwatch() as watch:
        for va in range(BASE, BASE + npages * 4096, 4096):
            handle_mm_fault(mm, vma, va, flags)
    return watch.seconds


def report(name: str, npages: int, seconds: list[tuple[float, float]]) -> None:
    clock, cpu = min(one for one, _ in seconds), min(one for _, one in seconds)
    rates = f"{npages / clock / 1e6:9.1f} M/s {npages / cpu / 1e6:9.1f} M/s of CPU time"
    print(f"{name:44} {npages:>12,} calls {clock:8.3f} s {rates}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hole", action="store_true", help="also walk a hole of 512 GiB, 134 million calls")
    parser.add_argument("--pages", type=int, default=1 << 22)
    arguments = parser.parse_args()
    print(f"gpuhmm {gpuhmm.__version__}, {resolve_backend('cpu').device}, numpy {np.__version__}")
    n = arguments.pages
    burst(1 << 12, READ), burst(1 << 12, WRITE)  # compiles
    report("first touch, read (zero page)", n, [burst(n, READ) for _ in range(RUNS)])
    report("first touch, write (a fresh page each)", n, [burst(n, WRITE) for _ in range(RUNS)])
    huge = RW | VM_HUGEPAGE
    report("first touch, huge, read", n, [burst(n, READ, huge) for _ in range(RUNS)])
    report("first touch, huge, write", n, [burst(n, WRITE, huge) for _ in range(RUNS)])
    report("touch again, write", n, [burst(n, WRITE, again=True) for _ in range(RUNS)])
    report("one by one, write", 1 << 14, [one_by_one(1 << 14, WRITE) for _ in range(RUNS)])
    if arguments.hole:
        npages = 1 << 27
        mm = gpuhmm.AddressSpace(kernel="v6.1")
        mm.mmap(BASE, BASE + npages * 4096)
        with Stopwatch() as watch:
            seen = gpuhmm.range_fault(
                mm, BASE, BASE + npages * 4096, request="read", backend="cpu", timeout_ms=1e9
            )
        assert seen.stats.faults == npages
        report("hmm_range_fault over a hole of 512 GiB, read", npages, [watch.seconds])


if __name__ == "__main__":
    main()
