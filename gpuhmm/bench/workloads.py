"""Spaces and requests with stable names: what a walk meets, from the plainest to the worst."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpuhmm.hmm.words import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm import x86
from gpuhmm.mm.entry import encode_swap
from gpuhmm.mm.tables import Words
from gpuhmm.mm.vma import VM_HUGETLB, VM_PFNMAP, VM_READ, VM_WRITE

BASE = 1 << 40

READ = int(HMM_PFN_REQ_FAULT)
WRITE = READ | int(HMM_PFN_REQ_WRITE)
_RW = VM_READ | VM_WRITE

#: Random numbers are drawn in pieces of that many: all at once would need more memory than the space.
_PIECE = 1 << 20


@dataclass(frozen=True)
class Workload:
    """One way of calling: how its space is made, what is asked, and which baseline moves the same bytes.

    ``small_tables`` is true where page tables take next to no memory, so that ranges larger than memory
    can be walked in pieces.  ``faults`` is true where every page is faulted in, so that a space serves
    one call only.
    """

    name: str
    make: Callable[[int], AddressSpace]
    baseline: str
    default_flags: int = 0
    pfn_flags_mask: int = 0
    small_tables: bool = False
    faults: bool = False

    @property
    def bytes_per_page(self) -> int:
        """Memory that the words, the baseline's source and the page tables take."""
        return 16 if self.small_tables else 24


def random_pfns(npages: int) -> Words:
    """Return uint64[npages], PFNs of a machine with 1 PiB."""
    return np.random.default_rng(1).integers(1 << 20, 1 << 38, npages, dtype=np.uint64)


def _space(npages: int, flags: int = _RW, page_shift: int = 12) -> AddressSpace:
    """Return a space with one area of ``npages`` at BASE and nothing mapped."""
    mm = AddressSpace()
    mm.mmap(BASE, BASE + (npages << 12), flags, page_shift)
    return mm


def dense(npages: int) -> AddressSpace:
    """Every page mapped by a PTE, writable, PFNs at random."""
    mm = _space(npages)
    mm.page_tables.reserve(leaf=-(-npages // 512))
    mm.map_pfns(BASE, random_pfns(npages))
    return mm


def fragmented(npages: int) -> AddressSpace:
    """Pages present, read-only, zero, swapped out and absent, mixed at random."""
    mm = dense(npages)
    leaf = mm.page_tables.leaf.reshape(-1)
    swap = np.uint64(encode_swap(3, 0x1234))
    zero = np.uint64(mm.zero_pfn << 12) | x86.PAGE_PRESENT | x86.PAGE_USER | x86.PAGE_SPECIAL
    rng = np.random.default_rng(2)
    for first in range(0, len(leaf), _PIECE):
        part = leaf[first : first + _PIECE]
        kind = rng.integers(0, 100, len(part), dtype=np.uint8)
        part[kind < 50] &= ~x86.PAGE_RW
        part[kind < 30] = np.uint64(0)
        part[kind < 15] = swap
        part[kind < 5] = zero
    return mm


def sparse(npages: int) -> AddressSpace:
    """One page in 512 mapped: every leaf table is there, and all but empty."""
    mm = _space(npages)
    mm.page_tables.reserve(leaf=-(-npages // 512))
    mm.map_pfns(BASE, random_pfns(npages))
    leaf = mm.page_tables.leaf
    leaf[:, 1:] = 0
    return mm


def thp(npages: int) -> AddressSpace:
    """Every 2 MiB mapped by a huge PMD."""
    mm = _space(npages)
    mm.map_pfns(BASE, random_pfns(npages // 512) & ~np.uint64(511), level=2)
    return mm


def hugetlb(npages: int) -> AddressSpace:
    """A hugetlb area of 2 MiB pages, all there."""
    mm = _space(npages, _RW | VM_HUGETLB, page_shift=21)
    mm.map_pfns(BASE, random_pfns(npages // 512) & ~np.uint64(511), level=2)
    return mm


def holes(npages: int) -> AddressSpace:
    """Nothing mapped, but for the tables above the leaf tables."""
    mm = _space(npages)
    for va in range(BASE, BASE + (npages << 12), 1 << 30):
        mm.make_tables(va, 2)
    return mm


def rejected(npages: int) -> AddressSpace:
    """An area of device memory, which no walk enters."""
    return _space(npages, VM_READ | VM_PFNMAP)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("dense-4k", dense, "copy"),
        Workload("dense-4k-read", dense, "copy", READ),
        Workload("dense-4k-write", dense, "copy", WRITE),
        Workload("dense-4k-per-page", dense, "update", 0, WRITE),
        Workload("fragmented", fragmented, "copy"),
        Workload("fragmented-per-page", fragmented, "update", 0, WRITE),
        Workload("sparse", sparse, "copy"),
        Workload("thp", thp, "fill", small_tables=True),
        Workload("thp-write", thp, "fill", WRITE, small_tables=True),
        Workload("hugetlb", hugetlb, "fill", small_tables=True),
        Workload("hugetlb-write", hugetlb, "fill", WRITE, small_tables=True),
        Workload("holes", holes, "fill", small_tables=True),
        Workload("error", rejected, "fill", small_tables=True),
        Workload("fault-storm", _space, "fill", WRITE, faults=True),
        Workload("fault-storm-per-page", _space, "fill", 0, WRITE, faults=True),
    )
}
