"""Comparing captures on a CUDA device: both are translated there, and only the changes come back."""

from __future__ import annotations

import numpy as np
from numba import cuda

from gpuhmm.kernels.device_tables import THREADS
from gpuhmm.mm.x86 import U64
from gpuhmm.shared import register
from gpuhmm.translation import cuda as translation
from gpuhmm.watch.page_change import page_change

register()


def compare_pages(before, after, changes):
    """Write the Change of every page; one thread each."""
    i = U64(cuda.grid(1))
    if i < U64(before.size):
        changes[i] = np.uint8(page_change(before[i], after[i]))


compare_kernel = cuda.jit(compare_pages)

#: The kernel with the types of its arguments, for the compile gate.
KERNELS = {compare_kernel: "Array1, Array1, Bytes1"}


def changes_of(before, after, vas):
    """Return uint8[n], a Change for each page, of the pages at ``vas`` in two sets of tables."""
    if not len(vas):
        return np.empty(0, dtype=np.uint8)
    on_device = cuda.to_device(vas)
    words = [cuda.device_array(len(vas), dtype=np.uint64) for _ in range(2)]
    for tables, out in zip((before, after), words, strict=True):
        translation.translate(tables, on_device, out)
    changes = cuda.device_array(len(vas), dtype=np.uint8)
    compare_kernel[-(-len(vas) // THREADS), THREADS](*words, changes)
    return changes.copy_to_host()
