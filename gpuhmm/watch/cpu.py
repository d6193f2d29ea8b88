"""Comparing captures on the CPU."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from gpuhmm.kernels.compile_cache import cached
from gpuhmm.shared import register
from gpuhmm.translation import cpu
from gpuhmm.watch.page_change import page_change

register()


def _changes(before, after, changes):
    for i in prange(before.size):
        changes[i] = np.uint8(page_change(before[i], after[i]))


changes_parallel = cached(njit(_changes, parallel=True))


def changes_of(before, after, vas):
    """Return uint8[n], a Change for each page, of the pages at ``vas`` in two sets of tables."""
    words = np.empty((2, len(vas)), dtype=np.uint64)
    changes = np.empty(len(vas), dtype=np.uint8)
    cpu.translate(before, vas, words[0])
    cpu.translate(after, vas, words[1])
    changes_parallel(words[0], words[1], changes)
    return changes
