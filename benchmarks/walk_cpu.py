"""Time the CPU back end beside loops that move the same bytes and decide nothing.

    python benchmarks/walk_cpu.py [PAGES] [ROUNDS] [NAME ...]

Every round times a workload and its baseline one after the other.  Times are the least of all rounds;
``median`` is the median of the rounds' own ratios, which what else the machine does changes less.
``baseline`` moves what a walk must move: ``copy`` reads a word and writes one, ``update`` reads two and
writes one of them, ``fill`` writes.  Set OMP_PROC_BIND=spread where threads share a CPU otherwise.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, njit, prange

import gpuhmm
from gpuhmm import x86
from gpuhmm.vma import VM_PFNMAP, VM_READ, VM_WRITE

BASE = 1 << 40
READ = int(gpuhmm.HMM_PFN_REQ_FAULT)
WRITE = READ | int(gpuhmm.HMM_PFN_REQ_WRITE)
BYTES_OF = {"copy": 16, "update": 24, "fill": 8}

_READ_ONLY = np.uint64(int(x86.PAGE_RW))
_SPECIAL = np.uint64(int(x86.PAGE_SPECIAL))


@njit(parallel=True)
def copy(source, target):
    """Read 8 bytes a page, write 8."""
    for i in prange(target.size):
        target[i] = source[i]


@njit(parallel=True)
def update(source, target):
    """Read 16 bytes a page, write 8 of them again."""
    for i in prange(target.size):
        target[i] = (target[i] & np.uint64(1 << 63)) | source[i]


@njit(parallel=True)
def fill(source, target):
    """Write 8 bytes a page."""
    for i in prange(target.size):
        target[i] = np.uint64(1 << 63)


BASELINES = {"copy": copy, "update": update, "fill": fill}


class Workload(NamedTuple):
    """One way of calling: a space, what is asked for, and what moves the same bytes."""

    name: str
    mm: gpuhmm.AddressSpace
    baseline: str
    default_flags: int = 0
    pfn_flags_mask: int = 0


def random_pfns(npages: int) -> np.ndarray:
    """Return uint64[npages], PFNs of a machine with 1 PiB."""
    return np.random.default_rng(1).integers(1 << 20, 1 << 38, npages, dtype=np.uint64)


def space(npages: int, flags: int = VM_READ | VM_WRITE, page_shift: int = 12) -> gpuhmm.AddressSpace:
    """Return a space with one area of ``npages`` at BASE and nothing mapped."""
    mm = gpuhmm.AddressSpace()
    mm.mmap(BASE, BASE + (npages << 12), flags, page_shift)
    return mm


def dense(npages: int) -> gpuhmm.AddressSpace:
    """Every page mapped by a PTE, writable, PFNs at random."""
    mm = space(npages)
    mm.page_tables.reserve(leaf=-(-npages // 512))
    mm.map_pfns(BASE, random_pfns(npages))
    return mm


def fragmented(npages: int) -> gpuhmm.AddressSpace:
    """Pages present, read-only, zero, swapped out and absent, mixed at random."""
    mm = dense(npages)
    leaf = mm.page_tables.leaf.reshape(-1)
    swap = np.uint64(x86.encode_swap(3, 0x1234))
    zero = np.uint64(mm.zero_pfn << 12 | int(x86.PAGE_PRESENT | x86.PAGE_USER)) | _SPECIAL
    rng = np.random.default_rng(2)
    for first in range(0, len(leaf), 1 << 20):  # in pieces: the random numbers need memory as well
        part = leaf[first : first + (1 << 20)]
        kind = rng.integers(0, 100, len(part), dtype=np.uint8)
        part[kind < 50] &= ~_READ_ONLY
        part[kind < 30] = np.uint64(0)
        part[kind < 15] = swap
        part[kind < 5] = zero
    return mm


def huge(npages: int, page_shift: int) -> gpuhmm.AddressSpace:
    """Every 2 MiB mapped by a PMD: THP for ``page_shift`` 12, hugetlb for 21."""
    mm = space(npages, page_shift=page_shift)
    mm.map_pfns(BASE, random_pfns(npages // 512) & ~np.uint64(511), level=2)
    return mm


def holes(npages: int) -> gpuhmm.AddressSpace:
    """Nothing mapped, but for the tables above the leaf tables."""
    mm = space(npages)
    for va in range(BASE, BASE + (npages << 12), 1 << 30):
        mm.make_tables(va, 2)
    return mm


def workloads(npages: int, wanted: list[str]) -> Iterator[Workload]:
    """Yield the workloads whose name starts with one of ``wanted``; one space is alive at a time."""

    def asked(name: str) -> bool:
        return not wanted or any(name.startswith(prefix) for prefix in wanted)

    if asked("dense"):
        mm = dense(npages)
        yield Workload("dense-4k snapshot", mm, "copy")
        yield Workload("dense-4k default-read", mm, "copy", READ)
        yield Workload("dense-4k default-write", mm, "copy", WRITE)
        yield Workload("dense-4k per-page", mm, "update", 0, WRITE)
        del mm
    if asked("fragmented"):
        mm = fragmented(npages)
        yield Workload("fragmented snapshot", mm, "copy")
        yield Workload("fragmented per-page", mm, "update", 0, WRITE)
        del mm
    if asked("thp"):
        mm = huge(npages, 12)
        yield Workload("thp snapshot", mm, "fill")
        yield Workload("thp default-write", mm, "fill", WRITE)
    if asked("hugetlb"):
        mm = huge(npages, 21)
        yield Workload("hugetlb snapshot", mm, "fill")
        yield Workload("hugetlb default-write", mm, "fill", WRITE)
    if asked("holes"):
        yield Workload("holes snapshot", holes(npages), "fill")
    if asked("error"):
        yield Workload("error snapshot", space(npages, VM_READ | VM_PFNMAP), "fill")


def seconds(call: Callable[[], object]) -> float:
    """Return how long one call took."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def caller(workload: Workload, words: np.ndarray) -> Callable[[], int]:
    """Return what makes one whole call, its HmmRange included."""
    notifier = workload.mm.notifier(BASE, BASE + len(words) * 4096)

    def call() -> int:
        range_ = gpuhmm.HmmRange(
            notifier,
            BASE,
            BASE + len(words) * 4096,
            words,
            notifier_seq=notifier.read_begin(),
            default_flags=workload.default_flags,
            pfn_flags_mask=workload.pfn_flags_mask,
        )
        return gpuhmm.hmm_range_fault(range_, backend="cpu")

    return call


def time_streams(npages: int, rounds: int, wanted: list[str]) -> None:
    """Print ns a page of every workload, of its baseline, and the ratio."""
    source = random_pfns(npages)
    words = np.zeros(npages, dtype=np.uint64)
    print(f"{'workload':24} {'ns/page':>8} {'baseline':>8} {'ns/page':>8} {'GB/s':>6} {'ratio':>6} median")
    for workload in workloads(npages, wanted):
        words[:] = 0
        call = caller(workload, words)
        if call() != 0:  # compiles, and leaves words that ask for what is there
            raise SystemExit(f"{workload.name}: hmm_range_fault() failed")
        baseline = partial(BASELINES[workload.baseline], source, words)
        baseline()
        pairs = []
        for _ in range(rounds):
            words[:] = 0
            call()
            pairs.append((seconds(call), seconds(baseline)))
        walk, least = (min(times) for times in zip(*pairs, strict=True))
        middle = statistics.median(a / b for a, b in pairs)
        print(
            f"{workload.name:24} {walk / npages * 1e9:8.3f} {workload.baseline:>8} "
            f"{least / npages * 1e9:8.3f} {BYTES_OF[workload.baseline] * npages / least / 1e9:6.1f} "
            f"{walk / least:6.2f} {middle:6.2f}",
            flush=True,
        )
        del workload, call
        gc.collect()


def time_small(rounds: int) -> None:
    """Print us of one whole call on 64 pages."""
    mm = dense(512)
    words = np.zeros(64, dtype=np.uint64)
    for name, flags, mask in (("snapshot", 0, 0), ("default-write", WRITE, 0), ("per-page", 0, WRITE)):
        call = caller(Workload(name, mm, "copy", flags, mask), words)
        call()
        least = min(seconds(call) for _ in range(200 * rounds))
        print(f"small-64 {name:15} {least * 1e6:8.1f} us a call")


def main(arguments: list[str]) -> None:
    """Run what the command line asks for."""
    npages = int(arguments[0], 0) if arguments else 1 << 26
    rounds = int(arguments[1]) if len(arguments) > 1 else 10
    wanted = arguments[2:]
    print(f"{npages} pages, {get_num_threads()} threads, least of {rounds} rounds")
    if not wanted or "small" in wanted:
        time_small(rounds)
    if wanted != ["small"]:
        time_streams(npages, rounds, wanted)


if __name__ == "__main__":
    main(sys.argv[1:])
