"""Preprocessing on a CUDA device: one thread merges a batch, CuPy sorts and counts.

The trace goes there in parts, so that the device needs the same memory for any length.  In numba's
simulator NumPy stands in for CuPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda
from numba.core import config

from gpuhmm.coalesce.preprocess.columns import sorted_batches, unmerged
from gpuhmm.coalesce.preprocess.merge import merge_batch
from gpuhmm.coalesce.preprocess.table import COUNTS, BatchTable
from gpuhmm.kernels.device_tables import THREADS
from gpuhmm.mm.x86 import U64
from gpuhmm.shared import register

if TYPE_CHECKING:
    from gpuhmm.coalesce.preprocess.rules import Rules
    from gpuhmm.coalesce.trace import FaultTrace

register()

#: Faults that are on the device at once, and bytes for the last faults of µTLBs: each thread has all.
_PART = 1 << 22
_UTLB_BYTES = 1 << 28
_MAX_THREADS = 1 << 16


def merge_batches(batch, row, utlbs, va, access, space, utlb, last_of_utlb, representative, instances, masks):
    """Merge the faults of each batch; one thread a batch, and then the batch ``threads`` later."""
    thread = U64(cuda.grid(1))
    slots = thread * utlbs
    low = thread * batch
    if slots + utlbs > U64(last_of_utlb.size):
        return
    threads = U64(last_of_utlb.size) // utlbs
    while low < U64(va.size):
        high = min(low + batch, U64(va.size))
        i, j = np.int64(low), np.int64(high)
        merge_batch(
            high - low,
            row + low,
            slots,
            va[i:j],
            access[i:j],
            space[i:j],
            utlb[i:j],
            last_of_utlb,
            representative[i:j],
            instances[i:j],
            masks[i:j],
        )
        low = low + threads * batch


merge_kernel = cuda.jit(merge_batches)

#: The kernel with the types of its arguments, for the compile gate.
KERNELS = {
    merge_kernel: (
        "uint64, uint64, uint64, Array1, Bytes1, Halves1, Halves1, Array1, Halves1, Numbers1, Bytes1"
    )
}


def coalesce(trace: FaultTrace, rules: Rules, batch: int, window: int) -> BatchTable:
    """Return the batches of a trace; see :func:`gpuhmm.coalesce.preprocess.coalesce.coalesce_trace`."""
    xp = _arrays()
    utlbs = trace.utlbs
    part = max(_PART // batch, 1) * batch
    threads = max(min(-(-min(part, len(trace)) // batch), _MAX_THREADS, _UTLB_BYTES // (8 * utlbs)), 1)
    last_of_utlb = xp.zeros(threads * utlbs, dtype=xp.uint64)
    ranks = xp.asarray(np.array(rules.ranks, dtype=np.uint8))
    shift = window.bit_length() - 13
    parts = []
    for low in range(0, len(trace), part):
        some = trace[low : low + part]
        columns = tuple(xp.asarray(column) for column in (some.va, some.access, some.space, some.utlb))
        if rules.merge:
            merged = tuple(xp.empty(len(some), dtype=dtype) for dtype in (xp.uint16, xp.uint32, xp.uint8))
            numbers = (U64(batch), U64(low), U64(utlbs))
            merge_kernel[-(-threads // THREADS), THREADS](*numbers, *columns, last_of_utlb, *merged)
        else:
            merged = unmerged(xp, batch, columns[1])
        done = (merged[0], *sorted_batches(xp, batch, shift, ranks, columns, merged))
        parts.append([array if xp is np else xp.asnumpy(array) for array in done])
    return _table(rules, batch, window, parts)


def _table(rules: Rules, batch: int, window: int, parts: list[Any]) -> BatchTable:
    dtypes = (np.uint16, np.uint16, np.uint32, np.uint8, np.uint8)
    representative, index, instances, masks, flags = (
        np.concatenate([np.zeros(0, dtype=dtype), *(part[i] for part in parts)])
        for i, dtype in enumerate(dtypes)
    )
    nothing = np.zeros((len(COUNTS), 0), dtype=np.uint32)
    counts = np.concatenate([nothing, *(part[-1] for part in parts)], axis=1)
    firsts = np.zeros(counts.shape[1] + 1, dtype=np.int64)
    np.cumsum(counts[COUNTS.index("coalesced")], out=firsts[1:])
    return BatchTable(rules, batch, window, representative, index, instances, masks, flags, firsts, counts)


def _arrays() -> Any:
    """Return CuPy, or NumPy in the simulator.  ImportError with what to install."""
    if config.ENABLE_CUDASIM:
        return np
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise ImportError(
            "preprocessing on a CUDA device needs CuPy: "
            "pip install 'gpuhmm[cuda13]' (or [cuda12], by your driver)"
        ) from error
