"""Small address spaces that several tests build."""

from __future__ import annotations

import numpy as np

import gpuhmm
from gpuhmm.mm.vma import VM_READ, VM_WRITE

BASE = 0x7F00_0000_0000
RW = VM_READ | VM_WRITE


def words(*values: int) -> np.ndarray:
    """Return uint64 values as an array."""
    return np.array(values, dtype=np.uint64)


def anonymous(npages: int, *, kernel: str = "v5.18", faults: object = None) -> gpuhmm.AddressSpace:
    """Return a space with one writable area of ``npages`` at BASE, nothing mapped."""
    mm = gpuhmm.AddressSpace(kernel=kernel, faults=faults)
    mm.mmap(BASE, BASE + npages * 4096, RW)
    return mm


def ask(mm, start, npages, backend, *, words_in=None, seq=None, **request):
    """Return the return code of one call and its range."""
    notifier = mm.notifier(start, start + max(npages, 1) * 4096)
    hmm_pfns = np.zeros(npages, dtype=np.uint64) if words_in is None else words_in.copy()
    range_ = gpuhmm.HmmRange(
        notifier,
        start,
        start + npages * 4096,
        hmm_pfns,
        notifier_seq=notifier.read_begin() if seq is None else seq,
        **request,
    )
    return gpuhmm.hmm_range_fault(range_, backend=backend), range_
