"""The baselines on a CUDA device: 16 bytes an access, as the streaming kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda

from gpuhmm.kernels.word_pairs import load_pair, store_pair

_VALID = np.uint64(1 << 63)
_TWO = np.uint64(2)
_THREADS = 256


def copy(source, target, pairs):
    """Read 16 bytes a thread, write 16."""
    pair = np.uint64(cuda.grid(1))
    if pair < pairs:
        first, second = load_pair(source, pair * _TWO)
        store_pair(target, pair * _TWO, first, second)


def update(source, target, pairs):
    """Read 32 bytes a thread, write 16 of them again."""
    pair = np.uint64(cuda.grid(1))
    if pair < pairs:
        first, second = load_pair(source, pair * _TWO)
        one, two = load_pair(target, pair * _TWO)
        store_pair(target, pair * _TWO, (one & _VALID) | first, (two & _VALID) | second)


def fill(source, target, pairs):
    """Write 16 bytes a thread."""
    pair = np.uint64(cuda.grid(1))
    if pair < pairs:
        store_pair(target, pair * _TWO, _VALID, _VALID)


_KERNELS = {"copy": cuda.jit(copy), "update": cuda.jit(update), "fill": cuda.jit(fill)}


def device_baseline(name: str, source: Any, target: Any) -> Callable[[], None]:
    """Return what runs a baseline over two device arrays of uint64 and waits for its end."""
    pairs = len(target) // 2
    blocks = max(1, -(-pairs // _THREADS))

    def run() -> None:
        _KERNELS[name][blocks, _THREADS](source, target, np.uint64(pairs))
        cuda.synchronize()

    return run
