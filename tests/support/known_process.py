"""A child process whose memory is known, and a naive reading of its pagemap."""

import contextlib
import json
import mmap
import os
import pathlib
import struct
import subprocess
import sys

import pytest

from gpuhmm.process.pagemap import pfns_visible

PAGE = 4096

_CHILD = """
import ctypes, json, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
R, W, SHARED, PRIVATE, ANONYMOUS, NORESERVE, HUGETLB = 1, 2, 1, 2, 0x20, 0x4000, 0x40000
at = {}

def area(name, size, prot=R | W, flags=PRIVATE | ANONYMOUS, fd=-1, gap=1 << 21):
    # Whole windows between the areas, so that neighbours never become one mapping.
    hint = area.next
    area.next = -(-(hint + size + gap) // (1 << 21)) * (1 << 21)
    va = libc.mmap(hint, size, prot, flags, fd, 0)
    if va is None or va == ctypes.c_void_p(-1).value:
        return None
    at[name] = [va, va + size]
    return va

area.next = 0x10000000000

def touch(va, pages, write=True):
    for page in pages:
        cell = ctypes.c_char.from_address(va + 4096 * page)
        if write:
            cell.value = b"x"
        else:
            cell.value

touch(area("touched", 64 * 4096), range(64))
touch(area("some", 64 * 4096), (0, 3, 4, 63))
area("untouched", 64 * 4096)
touch(area("zeros", 16 * 4096), range(16), write=False)
va = area("readonly", 32 * 4096)
touch(va, range(32))
libc.mprotect(va, 32 * 4096, R)
va = area("none", 32 * 4096)
touch(va, range(8))
libc.mprotect(va, 32 * 4096, 0)
va = area("thp", 4 << 20)
libc.madvise(va, 4 << 20, 14)
touch(va, (0,))
fd = os.open(sys.argv[1], os.O_RDWR)
touch(area("private file", 16 * 4096, flags=PRIVATE, fd=fd), range(8), write=False)
touch(at["private file"][0], (2,))
touch(area("shared file", 16 * 4096, flags=SHARED, fd=fd), range(4))
touch(area("shared", 16 * 4096, flags=SHARED | ANONYMOUS), range(5))
giant = area("giant", 1 << 40, flags=PRIVATE | ANONYMOUS | NORESERVE)
if giant is not None:
    touch(giant, (0, 1 << 27, (1 << 28) - 1))
area("reserve", 4 << 40, prot=0, flags=PRIVATE | ANONYMOUS | NORESERVE)
if int(sys.argv[2]):
    va = area("hugetlb", 4 << 20, flags=PRIVATE | ANONYMOUS | HUGETLB)
    if va is not None:
        touch(va, (0,))
print(json.dumps(at), flush=True)
sys.stdin.read()
"""


class KnownProcess:
    """A running child: ``pid``, and ``areas``, name -> (start, end)."""

    def __init__(self, folder, hugetlb=False):
        file = folder / "mapped"
        file.write_bytes(b"f" * (16 * PAGE))
        self._child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(file), str(int(hugetlb))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._child.pid
        self.areas = json.loads(self._child.stdout.readline())

    def end(self):
        """Let the child end and wait for it."""
        self._child.stdin.close()
        self._child.stdout.close()
        self._child.wait()

    def state(self):
        """Return the state letter of /proc/PID/stat."""
        with open(f"/proc/{self.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]

    def rss(self):
        """Return the resident pages of /proc/PID/statm."""
        with open(f"/proc/{self.pid}/statm") as file:
            return int(file.read().split()[1])


@contextlib.contextmanager
def known_process(folder, hugetlb=False):
    process = KnownProcess(folder, hugetlb)
    try:
        yield process
    finally:
        process.end()


def pagemap_word(pid, va):
    """Return the word of one page, read on its own."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        file.seek(va // mmap.PAGESIZE * 8)
        return struct.unpack("<Q", file.read(8))[0]


def present(word):
    return bool(word >> 63 & 1)


def pfn(word):
    return word & (1 << 55) - 1


def is_root():
    return os.geteuid() == 0


needs_pfns = pytest.mark.skipif(
    not is_root() or not pfns_visible(), reason="the kernel shows PFNs with CAP_SYS_ADMIN only"
)


@contextlib.contextmanager
def pool_of_huge_pages(count):
    """Have ``count`` free 2 MiB pages in the hugetlb pool for a while; yields whether that worked."""
    file = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    try:
        before = int(file.read_text())
        file.write_text(str(before + count))
    except OSError:
        yield False
        return
    try:
        yield int(file.read_text()) >= before + count
    finally:
        file.write_text(str(before))
