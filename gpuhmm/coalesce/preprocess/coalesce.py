"""The entry point of preprocessing."""

from __future__ import annotations

import importlib.util

import numpy as np

from gpuhmm.coalesce.access import ACCESS_NAMES
from gpuhmm.coalesce.preprocess.rules import rules_of
from gpuhmm.coalesce.preprocess.table import BatchTable
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.hmm.backends import backend_module, resolve_backend


def coalesce_trace(
    trace: FaultTrace,
    batch: int | None = None,
    window: int | None = None,
    rules: str = "uvm",
    backend: str = "auto",
) -> BatchTable:
    """Return what a driver makes of recorded faults before it services any.

    The trace is cut into batches of ``batch`` raw faults in the order of the buffer.  In each, faults merge
    as at fetch (``uvm`` only), what is left is sorted, faults on the page of the one before are marked, and
    aligned windows of ``window`` bytes are counted: a power of two from 4 KiB to 2 MiB, the VA block.
    ``rules`` is ``uvm``, ``nouveau`` or ``window``; batch and window default to those of the rules
    (256 and 2 MiB; for nouveau 65536 and 4 KiB, and no other window).

    A recorded trace has what the driver's flushes and replays left of it; cutting it into other batches
    says what these batches would hold, not what the device would have done next.

    ``backend`` is ``reference`` (step by step in Python), ``cpu``, ``cuda`` or ``auto``: ``cuda`` where a
    device and CuPy are there, else ``cpu``.  All return the same.  TypeError for what is no trace, ValueError
    for unknown rules, other batches and windows, and faults that cannot be.
    """
    if not isinstance(trace, FaultTrace):
        raise TypeError(f"trace must be a FaultTrace (got {type(trace).__name__})")
    found, batch, window = rules_of(rules, batch, window)
    _check(trace)
    info = resolve_backend(backend)
    if backend == "auto" and info.name == "cuda" and importlib.util.find_spec("cupy") is None:
        info = resolve_backend("cpu")
    module = backend_module(info, "gpuhmm.coalesce.preprocess")
    table: BatchTable = module.coalesce(trace, found, batch, window)
    return table


def _check(trace: FaultTrace) -> None:
    """Raise what ``trace.check()`` raises, without its arrays of truth values where nothing is wrong."""
    if len(trace):
        bits = np.bitwise_or.reduce(trace.va)
        falls = bool((trace.time[1:] < trace.time[:-1]).any())
        if (
            falls
            or trace.access.max() >= len(ACCESS_NAMES)
            or bits & np.uint64(4095)
            or bits >> np.uint64(56)
        ):
            trace.check()
