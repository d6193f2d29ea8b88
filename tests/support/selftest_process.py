"""A process and its devices, as the kernel's selftest of HMM sets them up.

Data is one word a page: page ``i`` of a buffer holds what the selftest writes there first.
"""

from __future__ import annotations

import numpy as np

import gpuhmm
from gpuhmm.memory import DeviceMemory, File, PhysicalMemory, check_invariants, load, mprotect, munmap, store
from gpuhmm.mirror import DeviceMirror
from gpuhmm.mm.vma import VM_READ, VM_SHARED, VM_WRITE

PAGE = 4096
RW = VM_READ | VM_WRITE
#: Pages of the selftest's standard buffer.
NPAGES = 1024
BUFFER = 0x7F00_0000_0000


def counting(npages, first=0):
    """Return uint64[npages]: first, first + 1, ..."""
    return np.arange(first, first + npages, dtype=np.uint64)


def negative(npages):
    """Return uint64[npages]: -0, -1, -2, ... as unsigned words."""
    return np.uint64(0) - counting(npages) if npages == 1 else (~counting(npages)) + np.uint64(1)


class Process:
    """An address space with CPU accesses that must succeed, and mirrors of it by device number."""

    def __init__(self, kernel, backend, coherent=False, devices=2, **memory):
        self.memory = PhysicalMemory(**memory)
        self.backend = backend
        self.coherent = coherent
        self.mm = gpuhmm.AddressSpace(kernel=kernel, memory=self.memory)
        self.devices = [
            DeviceMemory(self.memory, owner=0xD00 + i, npages=4096, coherent=coherent) for i in range(devices)
        ]
        self.mirrors = [self.mirror_of(self.mm, i) for i in range(devices)]

    def mirror_of(self, mm, number=0, **options):
        """Open a device for an address space (hmm_open)."""
        return DeviceMirror(mm, self.devices[number], backend=self.backend, **options)

    # -- system calls -------------------------------------------------------------------------

    def mmap(self, npages, prot=RW, at=BUFFER, **options):
        """Map private anonymous memory, or what ``file`` says; return where."""
        self.mm.mmap(at, at + npages * PAGE, prot, **options)
        return at

    def mmap_shared(self, npages, prot=RW, at=BUFFER, file=None):
        """Map shared memory; anonymous shared memory is a file of shmem, as in Linux."""
        file = File(self.memory, npages * PAGE, "shmem") if file is None else file
        return self.mmap(npages, prot | VM_SHARED, at, file=file)

    def mprotect(self, at, npages, prot):
        assert mprotect(self.mm, at, at + npages * PAGE, prot) == 0

    def munmap(self, at, npages):
        assert munmap(self.mm, at, at + npages * PAGE) == 0

    # -- the CPU ------------------------------------------------------------------------------

    def fill(self, at, words, mm=None):
        """Store a word in each page from ``at`` on."""
        for i, word in enumerate(words.tolist()):
            assert store(mm or self.mm, at + i * PAGE, word) == 0, f"page {i}"

    def words(self, at, npages, mm=None):
        """Return the word of each page: uint64[npages]."""
        found = [load(mm or self.mm, at + i * PAGE) for i in range(npages)]
        assert min(found) >= 0
        return np.array(found, dtype=np.uint64)

    def increment(self, at, npages, mm=None):
        """ptr[i]++ on every page, checking what was there."""
        for i in range(npages):
            assert load(mm or self.mm, at + i * PAGE) == i
            assert store(mm or self.mm, at + i * PAGE, i + 1) == 0

    # -- the end ------------------------------------------------------------------------------

    def check(self):
        """Everything that can be counted must add up."""
        check_invariants(self.memory)
        subscriptions = self.mm.subscriptions
        assert (subscriptions.active_invalidate_ranges, subscriptions.is_invalidating) == (0, False)


def read(process, at, npages, mirror=0):
    """Let a device read; return the result, which must have succeeded with one fault (HMM_DMIRROR_READ)."""
    result = process.mirrors[mirror].read(at, at + npages * PAGE)
    assert (result.ret, result.cpages, result.faults) == (0, npages, 1)
    return result.data


def write(process, at, words, mirror=None):
    """Let a device write; it must succeed with one fault (HMM_DMIRROR_WRITE)."""
    result = (mirror or process.mirrors[0]).write(at, words)
    assert (result.ret, result.cpages, result.faults) == (0, len(words), 1)


def migrate(process, at, npages, mirror=0):
    """Move pages to a device, all of them; return what it reads there."""
    result = process.mirrors[mirror].migrate_to_device(at, at + npages * PAGE)
    assert (result.ret, result.cpages) == (0, npages)
    return result.data


def snapshot(process, at, npages, mirror=0):
    """Return what a device's snapshot says of each page: a list of HMM_DMIRROR_PROT_*."""
    result = process.mirrors[mirror].snapshot(at, at + npages * PAGE)
    assert (result.ret, result.cpages) == (0, npages)
    return result.data.tolist()
