"""Timing: a call and its baseline in turns, so that what else the machine does meets both."""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np

from gpuhmm.bench.baselines import BASELINES
from gpuhmm.bench.cuda_cpp import cuda_cpp_stream
from gpuhmm.bench.peers import PEER_WORKLOADS, PEERS
from gpuhmm.bench.workloads import BASE, READ, WRITE, Workload, dense, random_pfns
from gpuhmm.capture import Capture
from gpuhmm.hmm.backends import hmm_range_fault, hmm_range_fault_runs
from gpuhmm.hmm.batch import HmmRangeBatch, hmm_range_fault_batch
from gpuhmm.hmm.loop import DEFAULT_MEMORY, range_fault_pieces
from gpuhmm.hmm.mirrored import MirroredRange
from gpuhmm.hmm.ranges import HmmRange
from gpuhmm.hmm.runs import HmmRuns
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.tables import Words
from gpuhmm.mm.x86 import PAGE_PRESENT
from gpuhmm.process import read_process
from gpuhmm.snapshot import load_snapshot

#: Pages of a fault storm at most: a model in Python serves them one by one.
MAX_FAULTED_PAGES = 1 << 14
#: Pages that a NumPy walk is given at most: it needs 40 bytes for each.
MAX_PEER_PAGES = 1 << 24
#: Pages that the reference walks at most.
MAX_REFERENCE_PAGES = 1 << 14

#: The one way of a baseline there.
_ON_DEVICE = "16 bytes an access"

#: Walks of plain pages by name, given a space, the first address and the words.
Peers = dict[str, Callable[[AddressSpace, int, Words], None]]

_SMALL_PAGES = 64
_BATCH_RANGES = 10_000


#: Seconds of each call, and of each way of its baseline that ran after it, by name.
Pairs = list[tuple[float, dict[str, float]]]


@dataclass(frozen=True)
class Row:
    """One measurement.

    ``seconds`` is the least of all rounds, ``median_seconds`` their median.  ``ratio`` is the median of
    each round's time over that of the fastest way of its baseline in the same round, None where there is
    none; ``baseline`` names the way that is fastest in the median, ``baselines`` has the medians of all.
    ``baseline_seconds`` is the least.  ``bytes`` are those that the baseline moves.
    """

    workload: str
    walker: str
    pages: int
    calls: int
    rounds: int
    seconds: float
    median_seconds: float
    pages_per_second: float
    baseline: str | None
    baseline_seconds: float | None
    baselines: dict[str, float]
    bytes: int | None
    ratio: float | None


def time_workload(
    workload: Workload, npages: int, backends: list[str], rounds: int, peers: Peers
) -> Iterator[Row]:
    """Yield one row for each back end that can do ``npages`` of it, and for each peer that can.

    ``peers`` are walks of plain pages beside those of :data:`gpuhmm.bench.peers.PEERS`, of any size.
    """
    source = random_pfns(npages)
    words = np.zeros(npages, dtype=np.uint64)
    if workload.faults:
        for backend in backends:
            if npages <= MAX_FAULTED_PAGES:
                yield _time_faults(workload, npages, backend, rounds, words)
        return
    mm = workload.make(npages)
    baseline = BASELINES[workload.baseline]
    moved = baseline.bytes_per_page * npages
    walkers: dict[str, Callable[[], object]] = {}
    for backend in backends:
        if backend == "cuda":
            on_device = _device_pairs(workload, mm, source, rounds)
            yield _row(workload.name, backend, npages, 1, on_device, workload.baseline, moved)
            if workload.name in PEER_WORKLOADS and importlib.util.find_spec("cupy"):
                in_cpp = _cuda_cpp_pairs(mm, source, rounds)
                yield _row(workload.name, "cuda C++", npages, 1, in_cpp, workload.baseline, moved)
        elif backend != "reference" or npages <= MAX_REFERENCE_PAGES:
            walkers[backend] = _call(workload, mm, words, backend)
    if workload.name in PEER_WORKLOADS and npages <= MAX_PEER_PAGES:
        walkers.update({name: partial(walk, mm, BASE, words) for name, walk in PEERS.items()})
    if workload.name in PEER_WORKLOADS:
        walkers.update({name: partial(walk, mm, BASE, words) for name, walk in peers.items()})
    for name, walker in walkers.items():
        words[:] = 0
        walker()  # compiles, touches all memory, and leaves words that ask for what is there
        asked = words & np.uint64(WRITE) if workload.pfn_flags_mask else None
        baseline.seconds(source, words)
        pairs: Pairs = []
        for _ in range(rounds):
            words[:] = 0 if asked is None else asked
            pairs.append((_seconds(walker), baseline.seconds(source, words)))
        yield _row(workload.name, name, npages, 1, pairs, workload.baseline, moved)


def time_pieces(workload: Workload, npages: int, backend: str) -> Row:
    """Time one walk of a range whose words do not fit in memory, piece by piece, and a fill of as much."""
    mm = workload.make(npages)
    walked = 0

    def consume(piece: MirroredRange) -> None:
        nonlocal walked
        walked += len(piece.hmm_pfns)

    request = {0: "none", READ: "read", WRITE: "write"}[workload.default_flags]
    end = BASE + (npages << 12)
    walk = partial(range_fault_pieces, mm, BASE, end, consume, request=request, backend=backend)
    words = np.zeros(DEFAULT_MEMORY >> 3, dtype=np.uint64)
    baseline = BASELINES[workload.baseline]
    filled = dict.fromkeys(baseline.seconds(words, words), 0.0)
    seconds = _seconds(walk)
    assert walked == npages
    for _ in range(-(-npages // len(words))):
        for way, taken in baseline.seconds(words, words).items():
            filled[way] += taken
    pairs: Pairs = [(seconds, filled)]
    name = f"{workload.name}-in-pieces"
    return _row(name, backend, npages, 1, pairs, workload.baseline, baseline.bytes_per_page * npages)


def _device_pairs(workload: Workload, mm: AddressSpace, source: Words, rounds: int) -> Pairs:
    """Time the CUDA back end on words in device memory, and the same traffic there."""
    from numba import cuda

    from gpuhmm.bench.device_baselines import device_baseline

    words = cuda.to_device(np.zeros(len(source), dtype=np.uint64))
    call = _call(workload, mm, words, "cuda")
    baseline = device_baseline(workload.baseline, cuda.to_device(source), cuda.device_array_like(words))
    call()
    baseline()
    pairs: Pairs = []
    for _ in range(rounds):
        cuda.synchronize()
        pairs.append((_seconds(call), {_ON_DEVICE: _seconds(baseline)}))
    return pairs


def _cuda_cpp_pairs(mm: AddressSpace, source: Words, rounds: int) -> Pairs:
    """Time the streaming kernel in CUDA C++ over the same leaf tables, and a copy there."""
    from numba import cuda

    from gpuhmm.bench.device_baselines import device_baseline

    words = cuda.to_device(np.zeros(len(source), dtype=np.uint64))
    entries = cuda.to_device(mm.page_tables.leaf.reshape(-1)[: len(source)])
    call = cuda_cpp_stream(entries, words, int(PAGE_PRESENT), mm.highest_memmap_pfn)
    baseline = device_baseline("copy", cuda.to_device(source), cuda.device_array_like(words))
    call()
    baseline()
    return [(_seconds(call), {_ON_DEVICE: _seconds(baseline)}) for _ in range(rounds)]


def time_small_ranges(backend: str, rounds: int) -> Iterator[Row]:
    """Yield what one call on 64 pages takes, and 10,000 such ranges in one batch."""
    mm = dense(_SMALL_PAGES * _BATCH_RANGES)
    words = np.zeros(_SMALL_PAGES * _BATCH_RANGES, dtype=np.uint64)
    for name, flags, mask in (("snapshot", 0, 0), ("write", WRITE, 0), ("per-page", 0, WRITE)):
        asked = Workload(name, dense, "copy", flags, mask)
        single = _call(asked, mm, words[:_SMALL_PAGES], backend)
        single()
        times: Pairs = [(_seconds(single), {}) for _ in range(50 * rounds)]
        yield _row(f"one-range-of-64-{name}", backend, _SMALL_PAGES, 1, times, None, None)
        batch = _batch_call(asked, mm, words, backend)
        batch()
        times = []
        for _ in range(rounds):
            words[:] = 0
            times.append((_seconds(batch), {}))
        yield _row(f"batch-of-64s-{name}", backend, len(words), _BATCH_RANGES, times, None, None)


def time_hole_runs(backend: str, rounds: int) -> Iterator[Row]:
    """Yield what holes of growing size take when runs are asked for."""
    mm = AddressSpace()
    mm.mmap(0, 1 << 47)
    for shift in (30, 34, 38, 42, 46):
        notifier = mm.notifier(0, 1 << shift)

        def call(notifier=notifier, end=1 << shift) -> int:  # type: ignore[no-untyped-def]
            return hmm_range_fault_runs(
                HmmRuns(notifier, 0, end, notifier_seq=notifier.read_begin()), backend
            )

        call()
        times: Pairs = [(_seconds(call), {}) for _ in range(10 * rounds)]
        yield _row("hole-as-runs", backend, 1 << (shift - 12), 1, times, None, None)


def time_live_process(backend: str, rounds: int) -> Iterator[Row]:
    """Yield the walk of this process's own page tables."""
    yield from _time_capture("live-process", read_process(os.getpid()), backend, rounds)


def time_snapshot(path: Path, backend: str, rounds: int) -> Iterator[Row]:
    """Yield the walk of a snapshot, of a process or of a memory dump."""
    yield from _time_capture("snapshot", load_snapshot(path).as_capture(), backend, rounds)


def _time_capture(workload: str, capture: Capture, backend: str, rounds: int) -> Iterator[Row]:
    """Yield the walk of all mappings in one call, as runs, and of all populated windows in one, as words."""
    mm, start, end = capture.space, capture.start, capture.end
    notifier = mm.notifier(start, end)

    def as_runs() -> int:
        return hmm_range_fault_runs(
            HmmRuns(notifier, start, end, notifier_seq=notifier.read_begin()), backend
        )

    firsts = (capture.windows << 21).astype(np.uint64)
    words = np.zeros(len(firsts) << 9, dtype=np.uint64)

    def as_words() -> list[int]:
        batch = HmmRangeBatch(
            notifier, firsts, firsts + np.uint64(1 << 21), words, notifier_seq=notifier.read_begin()
        )
        return hmm_range_fault_batch(batch, backend)

    baseline = BASELINES["copy"]
    source = np.zeros_like(words)
    for name, walk, calls in (("as-runs", as_runs, 1), ("as-words", as_words, len(firsts))):
        walk()
        baseline.seconds(source, words)
        pairs: Pairs = [(_seconds(walk), baseline.seconds(source, words)) for _ in range(10 * rounds)]
        moved = baseline.bytes_per_page * len(words)
        yield _row(f"{workload}-{name}", backend, len(words), calls, pairs, "copy", moved)


def _call(workload: Workload, mm: AddressSpace, words: Any, backend: str) -> Callable[[], int]:
    """Return what makes one whole call, its HmmRange included."""
    end = BASE + (len(words) << 12)
    notifier = mm.notifier(BASE, end)

    def call() -> int:
        range_ = HmmRange(
            notifier,
            BASE,
            end,
            words,
            notifier_seq=notifier.read_begin(),
            default_flags=workload.default_flags,
            pfn_flags_mask=workload.pfn_flags_mask,
        )
        return hmm_range_fault(range_, backend)

    return call


def _batch_call(workload: Workload, mm: AddressSpace, words: Words, backend: str) -> Callable[[], list[int]]:
    size = np.uint64(_SMALL_PAGES << 12)
    starts = np.uint64(BASE) + np.arange(_BATCH_RANGES, dtype=np.uint64) * size
    notifier = mm.notifier(BASE, BASE + (len(words) << 12))

    def call() -> list[int]:
        batch = HmmRangeBatch(
            notifier,
            starts,
            starts + size,
            words,
            notifier_seq=notifier.read_begin(),
            default_flags=workload.default_flags,
            pfn_flags_mask=workload.pfn_flags_mask,
        )
        return hmm_range_fault_batch(batch, backend)

    return call


def _time_faults(workload: Workload, npages: int, backend: str, rounds: int, words: Words) -> Row:
    """Time calls that fault every page in, each on a space of its own."""
    times: Pairs = []
    for _ in range(rounds):
        words[:] = WRITE if workload.pfn_flags_mask else 0
        times.append((_seconds(_call(workload, workload.make(npages), words, backend)), {}))
    return _row(workload.name, backend, npages, 1, times, None, None)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _row(
    workload: str,
    walker: str,
    pages: int,
    calls: int,
    times: Pairs,
    baseline: str | None,
    nbytes: int | None,
) -> Row:
    own = [seconds for seconds, _ in times]
    ways = {way: statistics.median(ways[way] for _, ways in times) for way in times[0][1]}
    best = [min(ways.values()) for _, ways in times if ways]
    fastest = min(ways, key=ways.__getitem__) if ways else None
    return Row(
        workload=workload,
        walker=walker,
        pages=pages,
        calls=calls,
        rounds=len(times),
        seconds=min(own),
        median_seconds=statistics.median(own),
        pages_per_second=pages / min(own),
        baseline=f"{baseline}, {fastest}" if ways else None,
        baseline_seconds=min(best) if best else None,
        baselines=ways,
        bytes=nbytes,
        ratio=statistics.median(map(truediv, own, best)) if best else None,
    )
