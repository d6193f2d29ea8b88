"""Which of several ways to the same answer a back end takes; tests force each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Paths:
    """From ``parallel_from`` pages on threads share a range (None: where that pays); ``stream`` on CUDA."""

    parallel_from: int | None = None
    stream: bool = True


#: What every call consults.
PATHS = Paths()


def on_one_thread(npages: int, limit: int) -> bool:
    """Return whether one thread walks ``npages``; ``limit`` is up to where that is faster."""
    if PATHS.parallel_from is not None:
        return npages < PATHS.parallel_from
    return npages <= limit


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
