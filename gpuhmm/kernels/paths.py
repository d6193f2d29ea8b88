"""Which of several ways to the same answer a back end takes; tests force each of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gpuhmm.mm.profile import KernelProfile

#: One folder for each cache of the first processor: Documentation/ABI/testing/sysfs-devices-system-cpu.
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE_BYTES = 32 << 20
_ENTRY_AND_WORD = 16


# A thread that waits for others must sleep.  OpenMP's spin at first, and where something else wants the
# processors they keep those from running that they wait for: 10,000 ranges of 64 pages took 800 ms instead of
# 9.  It is read when numba starts its threads, with the first parallel call of the process.
if "GOMP_SPINCOUNT" not in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@dataclass
class Paths:
    """Where None, the back end decides.

    From ``parallel_from`` pages on threads share a range, from ``past_caches_from`` pages on words are
    stored past the caches.  ``stream``: whole slots are streamed on CUDA.
    """

    parallel_from: int | None = None
    past_caches_from: int | None = None
    stream: bool = True


#: What every call consults.
PATHS = Paths()


def on_one_thread(npages: int, limit: int) -> bool:
    """Return whether one thread walks ``npages``; ``limit`` is up to where that is faster."""
    if PATHS.parallel_from is not None:
        return npages < PATHS.parallel_from
    return npages <= limit


def goes_past_caches(npages: int, kernel: KernelProfile) -> bool:
    """Return whether ``npages`` words are stored past the caches.

    That is where they and their entries fill the largest one (measured: ordinary stores took 1.6 times as
    long from there on, and the same time at half the size).  Not where words keep bits of their inputs,
    which are read for it and are in the caches then.
    """
    if kernel.hmm_pfn_sticky:
        return False
    if PATHS.past_caches_from is not None:
        return npages >= PATHS.past_caches_from
    return npages * _ENTRY_AND_WORD >= last_level_cache_bytes()


@cache
def last_level_cache_bytes() -> int:
    """Return the size of the first processor's largest cache, as Linux tells it; 32 MiB if it does not."""
    sizes = [0]
    for path in _CACHES.glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(path.read_text().strip().removesuffix("K")) << 10)
    return max(sizes) or _USUAL_CACHE_BYTES


@contextmanager
def one_thread_below(npages: int) -> Iterator[None]:
    """Walk ranges and batches below ``npages`` on one thread meanwhile, unless that is chosen already.

    For many small calls one after the other: to wake a second thread for each costs more than it brings
    wherever the processors are shared.
    """
    before = PATHS.parallel_from
    if before is None:
        PATHS.parallel_from = npages
    try:
        yield
    finally:
        PATHS.parallel_from = before
