"""Preprocessing of recorded fault traces: faults a second, next to a copy of the same bytes in one run.

    python benchmarks/coalesce.py [--faults N] [--batch 256 ...] [--rules uvm] [--repeats N] [--json]

Traces: random pages of 64 GiB; a stream in which each µTLB goes through its own part; and few pages,
where nearly all faults are duplicates.  Compiling is not timed; every number is the best of several runs,
in which trace, copy and back ends take turns.  The copy is of the columns that are read: va, access, space
and utlb.
"""

from __future__ import annotations

import argparse
import json
import time

import numba
import numpy as np

import gpuhmm
from gpuhmm.coalesce.preprocess import coalesce_trace
from gpuhmm.coalesce.trace import FaultTrace

UTLBS = 80


def traces(faults):
    """Return traces of ``faults`` faults by name."""
    rng = np.random.default_rng(1)
    utlb = rng.integers(0, UTLBS, faults).astype(np.uint16)
    access = rng.integers(1, 3, faults).astype(np.uint8)
    # Each µTLB asks for the next page of its part, or again for one of the last three.
    place = np.arange(faults) // UTLBS - rng.integers(0, 4, faults)
    stream = utlb.astype(np.int64) * (1 << 16) + np.maximum(place, 0)
    pages = {
        "random": rng.integers(0, 1 << 24, faults),
        "stream": stream,
        "few pages": rng.integers(0, 64, faults),
    }
    return {
        name: FaultTrace.of(
            va=(0x7F00_0000_0000 + (numbers << 12)).astype(np.uint64), access=access, utlb=utlb
        )
        for name, numbers in pages.items()
    }


def timed(function):
    """Return how long a call took, in seconds."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def measure(trace, batch, rules, backend, repeats):
    """Return faults a second: by one thread, by all, and of a copy."""
    threads = numba.get_num_threads()
    columns = (trace.va, trace.access, trace.space, trace.utlb)
    copies = [np.empty_like(column) for column in columns]

    def copy():
        for column, out in zip(columns, copies, strict=True):
            np.copyto(out, column)

    def run():
        coalesce_trace(trace, batch, rules=rules, backend=backend)

    ways = {"copy": (1, copy), "one thread": (1, run), "all threads": (threads, run)}
    if backend == "cuda":
        ways = {"copy": (1, copy), "device": (threads, run)}
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(repeats + 1):
        for name, (many, function) in ways.items():
            numba.set_num_threads(many)
            taken = timed(function)
            if turn:  # the first compiles, and touches the memory
                best[name] = min(best[name], taken)
    numba.set_num_threads(threads)
    return {name: len(trace) / seconds for name, seconds in best.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--faults", type=int, default=1 << 24)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256, 1024, 6144])
    parser.add_argument("--rules", default="uvm")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    info = gpuhmm.resolve_backend(options.backend)
    rows = []
    for name, trace in traces(options.faults).items():
        for batch in options.batch:
            totals = coalesce_trace(trace, batch, rules=options.rules, backend=info.name).totals()
            rates = measure(trace, batch, options.rules, info.name, options.repeats)
            unique = totals["unique_pages"] / totals["raw"]
            rows.append({"trace": name, "batch": batch, "unique": unique, "faults_per_second": rates})
    made = {
        "gpuhmm": gpuhmm.__version__,
        "device": info.device,
        "rules": options.rules,
        "faults": options.faults,
        "threads": numba.get_num_threads(),
        "rows": rows,
    }
    if options.json:
        print(json.dumps(made, indent=1))
        return
    print(f"gpuhmm {made['gpuhmm']}, {info.name} back end ({info.device}), {options.rules} rules")
    print(f"{options.faults} faults; millions of faults a second")
    print(
        f"{'trace':10} {'batch':>6} {'unique':>7} "
        + " ".join(f"{way:>12}" for way in rows[0]["faults_per_second"])
    )
    for row in rows:
        rates = " ".join(f"{rate / 1e6:12.1f}" for rate in row["faults_per_second"].values())
        print(f"{row['trace']:10} {row['batch']:6} {row['unique']:7.1%} {rates}")


if __name__ == "__main__":
    main()
