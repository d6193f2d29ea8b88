"""/proc/PID/pagemap, its PAGEMAP_SCAN ioctl, and /proc/kpageflags as arrays.

Source: fs/proc/task_mmu.c:pagemap_read, do_pagemap_scan, fs/proc/page.c:kpageflags_read,
include/uapi/linux/fs.h (v6.18).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from types import TracebackType

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

# One word of pagemap.
PM_PFN = np.uint64((1 << 55) - 1)
PM_SWAP_TYPE = np.uint64(0x1F)
PM_SWAP_OFFSET_SHIFT = np.uint64(5)
PM_SOFT_DIRTY = np.uint64(1 << 55)
PM_MMAP_EXCLUSIVE = np.uint64(1 << 56)
PM_UFFD_WP = np.uint64(1 << 57)
PM_GUARD_REGION = np.uint64(1 << 58)
PM_FILE = np.uint64(1 << 61)
PM_SWAP = np.uint64(1 << 62)
PM_PRESENT = np.uint64(1 << 63)
PM_POPULATED = PM_PRESENT | PM_SWAP

# Categories of PAGEMAP_SCAN.
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
PAGE_IS_PFNZERO = 1 << 5
PAGE_IS_HUGE = 1 << 6

# Bits of kpageflags.
KPF_KSM = np.uint64(1 << 21)
KPF_THP = np.uint64(1 << 22)
KPF_ZERO_PAGE = np.uint64(1 << 24)

#: Pages of 2 MiB are the unit of reading: one leaf table, 512 words of pagemap.
WINDOW_SHIFT = 21

#: What PAGEMAP_SCAN returns: ``[start, end)`` in bytes with the same categories throughout.
REGION_DTYPE = np.dtype([("start", np.uint64), ("end", np.uint64), ("categories", np.uint64)])

_PAGEMAP_SCAN = 3 << 30 | 96 << 16 | ord("f") << 8 | 16
_SCAN_ARG = struct.Struct("12Q")
_SCAN_REGIONS = 1 << 14
#: What a kernel, or a sandbox, answers that has no PAGEMAP_SCAN.
_NO_SCAN = {errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP}

#: Windows that one read asks for: 8 MiB of words, 2 GiB of addresses.
READ_WINDOWS = 1 << 10


class Pagemap:
    """The open pagemap of a process; a context manager.

    OSError as open(2) gives it; ProcessLookupError from the methods when the process has ended.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Pagemap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read(self, first_window: int, out: Words) -> None:
        """Fill ``out``, uint64[n, 512] in C order, with the words of ``n`` windows from that one on."""
        view = memoryview(out.data).cast("B")
        at = first_window << (WINDOW_SHIFT - 9)  # eight bytes a page of 4 KiB
        while view:
            done = os.preadv(self._fd, [view], at)
            if not done:
                raise ProcessLookupError(f"process {self.pid} ended while it was read")
            view, at = view[done:], at + done

    def scan(self, start: int, end: int) -> npt.NDArray[np.void] | None:
        """Return what is present or swapped in ``[start, end)`` as ``REGION_DTYPE``[n], by address.

        None where the kernel has no PAGEMAP_SCAN (before Linux 6.7).
        """
        parts: list[npt.NDArray[np.void]] = []
        regions = np.empty(_SCAN_REGIONS, dtype=REGION_DTYPE)
        populated = PAGE_IS_PRESENT | PAGE_IS_SWAPPED
        while start < end:
            argument = bytearray(
                _SCAN_ARG.pack(
                    _SCAN_ARG.size,
                    0,  # flags
                    start,
                    end,
                    0,  # walk_end, for the kernel to write
                    regions.ctypes.data,
                    len(regions),
                    0,  # max_pages: no limit
                    0,  # category_inverted
                    0,  # category_mask
                    populated,  # category_anyof_mask
                    populated | PAGE_IS_PFNZERO | PAGE_IS_HUGE,  # return_mask
                )
            )
            try:
                count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, argument)
            except OSError as error:
                if error.errno == errno.ESRCH:
                    raise ProcessLookupError(f"process {self.pid} ended while it was read") from None
                if error.errno in _NO_SCAN and not parts:
                    return None
                raise
            parts.append(regions[:count].copy())
            start = max(_SCAN_ARG.unpack(argument)[4], start + 4096)
        return np.concatenate(parts) if parts else regions[:0]


def pfns_visible() -> bool:
    """True if the kernel shows PFNs to this process (CAP_SYS_ADMIN); without that they read as 0."""
    page = np.ones(1024, dtype=np.uint64)  # 8 KiB, so that one whole page is surely touched
    return bool(own_word(page.ctypes.data) & int(PM_PFN))


def own_word(address: int) -> int:
    """Return the word of this process's page at ``address``."""
    words = np.empty((1, 512), dtype=np.uint64)
    with Pagemap(os.getpid()) as pagemap:
        pagemap.read(address >> WINDOW_SHIFT, words)
    return int(words[0, address >> 12 & 511])


def kpageflags(pfns: Words) -> Words | None:
    """Return the KPF_* bits of each PFN, uint64 of the shape of ``pfns``; None where not permitted."""
    wanted, back = np.unique(pfns, return_inverse=True)
    flags = np.zeros(len(wanted), dtype=np.uint64)
    try:
        fd = os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Neighbours are read together, with what small gaps lie between them.
        cuts = np.flatnonzero(np.diff(wanted) > 512) + 1
        for part in np.split(np.arange(len(wanted)), cuts):
            if not len(part):
                continue
            first, last = int(wanted[part[0]]), int(wanted[part[-1]])
            read = np.frombuffer(os.pread(fd, (last - first + 1) * 8, first * 8), dtype=np.uint64)
            inside = wanted[part] - np.uint64(first)
            known = inside < len(read)
            flags[part[known]] = read[inside[known]]
    except OSError:
        return None
    finally:
        os.close(fd)
    return flags[back].reshape(pfns.shape)
