"""Page tables for tests of dumps: random ones in an image of memory, as bytes and as files."""

from __future__ import annotations

import struct

import numpy as np

from gpuhmm.dump import load_tables
from gpuhmm.image import ReaderSource
from gpuhmm.mm.x86 import level_shift

TABLE = 0x67
LEAF = 0x867 | 1 << 63
PSE = 1 << 7
PROTNONE = 1 << 8
ADDRESS = 0x000F_FFFF_FFFF_F000
ALL = (1 << 64) - 1


class TableImage:
    """Memory of some MiB in which page tables are put by hand; ``data`` is uint64[pages, 512]."""

    def __init__(self, pages=256, levels=4, root=1):
        self.data = np.zeros((pages, 512), dtype=np.uint64)
        self.levels = levels
        self.root = root
        self.next = root + 1

    @property
    def cr3(self):
        return self.root << 12

    def table(self, va, level):
        """Return the PFN of the table whose entries of ``level`` cover ``va``, making what is missing.

        None where a large page or a wild entry is in the way, or no page is left.
        """
        pfn = self.root
        for upper in range(self.levels, level, -1):
            slot = va >> level_shift(upper) & 511
            entry = int(self.data[pfn, slot])
            if not entry:
                if self.next == len(self.data):
                    return None
                entry = self.next << 12 | TABLE
                self.data[pfn, slot] = entry
                self.next += 1
            pfn = (entry & ADDRESS) >> 12
            if entry & (1 | PSE) != 1 or pfn >= self.next:
                return None
        return pfn

    def entry(self, va, level):
        """Return a raw entry, None where there can be none."""
        pfn = self.table(va, level)
        return None if pfn is None else int(self.data[pfn, va >> level_shift(level) & 511])

    def set(self, va, level, value):
        """Store a raw entry, if there can be one."""
        pfn = self.table(va, level)
        if pfn is not None:
            self.data[pfn, va >> level_shift(level) & 511] = value & ALL

    def bytes(self):
        return self.data.astype("<u8").tobytes()


def random_image(rng, levels=4, pages=256, tables=40):
    """Return an image of random tables in both halves: all sizes, holes, swap, PROTNONE, wild PFNs."""
    image = TableImage(pages, levels)
    bits = 12 + 9 * levels
    for _ in range(tables):
        va = rng.choice([0x7F00_0000_0000, 0x1_0000_0000, (1 << bits) - (1 << 31)])
        va += rng.randrange(4) << 30 | rng.randrange(3) << 21
        kind = rng.randrange(10)
        pfn = rng.randrange(1 << 20)
        wild = rng.randrange(pages, 1 << 40) << 12 | TABLE
        if kind == 0:
            if image.entry(va, 3) == 0:
                image.set(va, 3, rng.choice([(pfn << 30 & ADDRESS) | LEAF | PSE, wild]))
            continue
        if kind < 4:
            whole = pfn << 21 & ADDRESS
            inverted = (~whole & ADDRESS) | PSE | PROTNONE
            if image.entry(va, 2) == 0:
                moving = 29 << 59 | 0x1234_0000
                image.set(va, 2, rng.choice([whole | LEAF | PSE, inverted, moving, PROTNONE, wild]))
            continue
        fill(rng, image, va)
    return image


def fill(rng, image, va):
    """Fill one leaf table with runs of pages of all kinds."""
    slot = 0
    while slot < 512:
        count = rng.choice([1, 1, 2, 7, 40, 200])
        pfn = rng.randrange(1, 1 << 28)
        flags = rng.choice([LEAF, LEAF & ~2, 0x25, 0x865])
        kind = rng.randrange(6)
        for i in range(min(count, 512 - slot)):
            entry = (pfn + i) << 12 | flags
            if kind == 0:
                entry = 0
            elif kind == 1:
                entry = (~(pfn + i << 12) & ADDRESS) | 0x120
            elif kind == 2:
                entry = rng.choice([0x20, 29 << 59 | 0x5555_0000, 3 << 59 | i << 20])
            image.set(va + ((slot + i) << 12), 1, entry)
        slot += count


def map_kernel(image):
    """Map what every Linux has: its text, and the espfix area in slot 510 of the table above the PUDs."""
    image.set(0xFFFF_FFFF_8100_0000, 2, 0x100_0000 | 0x1E1)
    image.set(0xFFFF_FF00_0000_5000, 1, 0x20_0000 | 0x161 | 1 << 63)


def elf_core(pieces, cr3s=(), la57=False, memory_beyond=0, vmcoreinfo=None):
    """Return an ELF core as QEMU writes it: ``pieces`` are (physical address, bytes)."""
    notes = b""
    if vmcoreinfo is not None:
        padded = vmcoreinfo + bytes(-len(vmcoreinfo) % 4)
        notes += struct.pack("<III12s", 11, len(vmcoreinfo), 0, b"VMCOREINFO") + padded
    for cr3 in cr3s:
        state = bytearray(440)
        struct.pack_into("<II", state, 0, 1, 440)
        struct.pack_into("<QQ", state, 416, cr3, 0x20 | la57 << 12)
        notes += struct.pack("<III8s", 5, 336, 1, b"CORE") + bytes(336)
        notes += struct.pack("<III8s", 5, len(state), 0, b"QEMU") + bytes(state)
    headers = 64 + 56 * (1 + len(pieces))
    offset = headers + len(notes)
    table = struct.pack("<IIQQQQQQ", 4, 0, headers, 0, 0, len(notes), len(notes), 0)
    for address, data in pieces:
        size = len(data)
        table += struct.pack("<IIQQQQQQ", 1, 0, offset, 0, address, size, size + memory_beyond, 0)
        offset += size
    head = struct.pack("<4sBBBBB7x", b"\x7fELF", 2, 1, 1, 0, 0)
    head += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1 + len(pieces), 0, 0, 0)
    return head + table + notes + b"".join(data for _, data in pieces)


def lime(pieces):
    """Return a LiME image: ``pieces`` are (physical address, bytes)."""
    return b"".join(
        struct.pack("<4sIQQ8x", b"EMiL", 1, address, address + len(data) - 1) + data
        for address, data in pieces
    )


def interesting_addresses(rng, image, count):
    """Return addresses, uint64[n]: mapped ones and neighbours of both halves, some not canonical."""
    bits = 12 + 9 * image.levels
    vas = []
    for _ in range(count):
        va = rng.choice([0x7F00_0000_0000, 0x1_0000_0000, (1 << bits) - (1 << 31)])
        va += rng.randrange(5 << 30) if rng.randrange(3) else rng.randrange(3 << 21)
        va %= 1 << bits
        if va >> (bits - 1):
            va |= ALL ^ (1 << bits) - 1
        if not rng.randrange(20):
            va ^= 1 << rng.randrange(64)
        vas.append(va)
    return np.array(vas, dtype=np.uint64)


def walk_memory(image, va):
    """Translate by reading memory entry by entry: (physical address or None, level of the last entry)."""
    bits = 12 + 9 * image.levels
    if va >> (bits - 1) not in (0, (1 << (65 - bits)) - 1):
        return None, 0
    pfn = image.root
    for level in range(image.levels, 0, -1):
        shift = level_shift(level)
        entry = int(image.data[pfn, va >> shift & 511])
        leaf = level == 1 or (level <= 3 and entry & PSE)
        upright = entry if entry & 1 else ~entry
        if not entry & 1 and not (leaf and entry & PROTNONE):
            return None, level
        if leaf:
            return upright & ADDRESS & -(1 << shift) | va & (1 << shift) - 1, level
        pfn = (entry & ADDRESS) >> 12
        if pfn >= len(image.data) or entry & PSE:
            return None, level
    raise AssertionError


def loaded(image):
    """Return the tables of an image."""
    data = image.bytes()
    return load_tables(ReaderSource(lambda at, size: data[at : at + size]), image.cr3, levels=image.levels)


def expanded(runs):
    """Return virtual and physical address of every page of runs, and which run it belongs to."""
    counts = runs["npages"].astype(np.int64)
    which = np.repeat(np.arange(len(runs)), counts)
    inside = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.uint64) << 12
    return runs["va"][which] + inside, runs["pa"][which] + inside, which
