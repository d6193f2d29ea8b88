"""Rows that follow from the driver's rules: merging, order, the prefetch tree, the law of distinct blocks."""

from __future__ import annotations

import math

import numpy as np

from gpuhmm.coalesce.access import (
    ACCESS_ATOMIC_STRONG,
    ACCESS_ATOMIC_WEAK,
    ACCESS_PREFETCH,
    ACCESS_READ,
    ACCESS_WRITE,
)
from gpuhmm.coalesce.drivers.uvm.fetch import fetch
from gpuhmm.coalesce.drivers.uvm.prefetch import prefetch_mask
from gpuhmm.coalesce.drivers.uvm.sort import sort_representatives
from gpuhmm.coalesce.preprocess import coalesce_trace
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.coalesce.validate.row import Row, exact

_UVM = "NVIDIA UVM 595.45.04"

#: Faults of one batch as (page, access, µTLB), and the places of those left after merging.
_MERGES = (
    # The last fault of the same µTLB, whatever other µTLBs wrote in between.
    ([(1, ACCESS_READ, 0), (2, ACCESS_READ, 1), (1, ACCESS_READ, 0)], [0, 1]),
    # The last fault of the batch, from another µTLB, if the access is no more intrusive.
    ([(1, ACCESS_WRITE, 0), (1, ACCESS_READ, 1)], [0]),
    ([(1, ACCESS_READ, 0), (1, ACCESS_WRITE, 1)], [0, 1]),
    # A more intrusive access of the same µTLB becomes the one that is serviced.
    ([(1, ACCESS_READ, 0), (1, ACCESS_WRITE, 0)], [1]),
    # Neither the last of its µTLB nor the last of the batch: it stays.
    ([(1, ACCESS_READ, 0), (2, ACCESS_READ, 0), (1, ACCESS_READ, 0)], [0, 1, 2]),
    ([(1, ACCESS_READ, 0), (2, ACCESS_READ, 1), (1, ACCESS_READ, 2)], [0, 1, 2]),
)

#: Faults of one batch, and the order in which they are serviced.
_ORDERS = (
    ([(3, ACCESS_READ, 0), (1, ACCESS_READ, 1), (2, ACCESS_READ, 2)], [1, 2, 0]),
    (
        [
            (1, ACCESS_PREFETCH, 0),
            (2, ACCESS_READ, 1),
            (1, ACCESS_READ, 2),
            (2, ACCESS_READ, 3),
            (1, ACCESS_WRITE, 4),
            (2, ACCESS_READ, 5),
            (1, ACCESS_ATOMIC_WEAK, 6),
            (3, ACCESS_READ, 7),
            (1, ACCESS_ATOMIC_STRONG, 8),
        ],
        [8, 6, 4, 2, 0, 1, 3, 5, 7],
    ),
)

#: Faulted pages, resident pages, and what is prefetched in addition, each as ranges of page numbers.
_MASKS: tuple[tuple[list[tuple[int, int]], ...], ...] = (
    ([(0, 1)], [], [(1, 16)]),  # a big page of 64 KiB
    ([(511, 512)], [], [(496, 511)]),
    ([(0, 1), (32, 33)], [], [(1, 16), (33, 48)]),  # half of 256 KiB is not more than 51 %
    ([(0, 1), (16, 17), (32, 33)], [], [(1, 16), (17, 32), (33, 64)]),  # three quarters are
    ([(32, 33)], [(0, 32)], [(0, 32), (33, 64)]),  # so they are with what is resident
    ([(0, 1), (256, 257)], [], [(1, 16), (257, 272)]),
    ([(256, 257)], [(0, 256)], [(0, 256), (257, 512)]),  # 272 of 512 are more than 51 %
    ([(256, 257)], [(0, 240)], [(257, 272)]),  # 256 of 512 are not
)


def rule_rows(seed: int = 1) -> list[Row]:
    """Return the rows."""
    return [
        exact("merge rules, hand-worked batches", _UVM, "batches right", len(_MERGES), _merged_right()),
        exact("sort order, hand-worked batches", _UVM, "batches right", len(_ORDERS), _ordered_right()),
        exact(
            "tree prefetch, hand-worked masks", f"{_UVM}; > 51 %", "masks right", len(_MASKS), _masks_right()
        ),
        exact(
            "batch path against step by step", "200,000 random faults", "differences", 0, _differences(seed)
        ),
        *(_law(blocks, seed) for blocks in (64, 256, 2048)),
    ]


def _batch(faults: list[tuple[int, int, int]]) -> FaultTrace:
    pages, access, utlb = zip(*faults, strict=True)
    va = np.array(pages, dtype=np.uint64) << np.uint64(12)
    return FaultTrace.of(va=va, access=access, utlb=utlb)


def _merged_right() -> int:
    return sum(
        [entry.index for entry in fetch(_batch(faults)).representatives()] == left for faults, left in _MERGES
    )


def _ordered_right() -> int:
    right = 0
    for faults, order in _ORDERS:
        ordered = sort_representatives(fetch(_batch(faults), merge=False).representatives())
        right += [item.entry.index for item in ordered] == order
    return right


def _mask(ranges: list[tuple[int, int]]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    mask = np.zeros(512, dtype=np.bool_)
    for first, past in ranges:
        mask[first:past] = True
    return mask


def _masks_right() -> int:
    right = 0
    for faulted, resident, wanted in _MASKS:
        named = prefetch_mask(_mask(faulted), _mask(resident))
        right += np.array_equal(named | _mask(resident), _mask(wanted) | _mask(resident))
    return right


def _differences(seed: int) -> int:
    """Return in how many columns of random batches the compiled path and the rules differ."""
    rng = np.random.default_rng(seed)
    count = 200_000
    trace = FaultTrace.of(
        time=np.arange(count, dtype=np.uint64),
        va=rng.integers(0, 2000, count).astype(np.uint64) << np.uint64(12),
        access=rng.integers(0, 5, count),
        utlb=rng.integers(0, 40, count),
    )
    quick, slow = coalesce_trace(trace, backend="cpu"), coalesce_trace(trace, backend="reference")
    columns = ("representative", "index", "instances", "masks", "flags", "firsts", "counts")
    return sum(not np.array_equal(getattr(quick, name), getattr(slow, name)) for name in columns)


def _law(blocks: int, seed: int) -> Row:
    """Return the row of uniform random faults over ``blocks`` VA blocks: N(1 - (1 - 1/N)^256) a batch.

    The mean over many batches may be off by four standard errors.
    """
    batches = 4000
    rng = np.random.default_rng(seed)
    va = rng.integers(0, blocks * 512, batches * 256).astype(np.uint64) << np.uint64(12)
    trace = FaultTrace.of(time=np.arange(len(va), dtype=np.uint64), va=va)
    found = coalesce_trace(trace, backend="cpu").count("windows").astype(np.float64)
    law = blocks * (1 - (1 - 1 / blocks) ** 256)
    error = 4 * float(found.std()) / math.sqrt(batches)
    return Row(
        f"distinct VA blocks of 256 uniform faults over {blocks}",
        "exact",
        "N(1-(1-1/N)^256)",
        "VA blocks a batch",
        law,
        float(found.mean()),
        law - error,
        law + error,
    )
