"""Which of several ways to the same answer a back end takes; tests force each of them."""

from __future__ import annotations

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
