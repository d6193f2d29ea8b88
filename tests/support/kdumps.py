"""Dumps that makedumpfile and QEMU's ``dump-guest-memory -z`` write, from the facts of the formats.

Source: IMPLEMENTATION of makedumpfile 1.7.2 (kdump-compressed, header version 6; flattened format);
include/sysemu/dump.h of QEMU 8.2 (DiskDumpHeader64, KdumpSubHeader64, PageDescriptor).
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

BLOCK = 4096
_ZLIB = 1


def kdump(pages, max_pfn, vmcoreinfo=b"", qemu=False, machine=b"x86_64"):
    """Return a compressed kdump; ``pages`` maps PFNs to 4096 bytes, others below ``max_pfn`` are left out.

    Of a kernel's names ``qemu`` writes that of the machine only (dump/dump.c:create_header64, 7.2).
    """
    bitmap_blocks = -(-max_pfn // 8 // BLOCK) or 1
    head = bytearray(BLOCK)
    struct.pack_into("<8sI", head, 0, b"KDUMP   ", 6)
    names = (b"Linux", b"guest", b"6.1.192", b"#1 SMP", machine, b"(none)")
    names = tuple(name if name == machine or not qemu else b"" for name in names)
    head[12 : 12 + 6 * 65] = b"".join(name.ljust(65, b"\0") for name in names)  # struct new_utsname
    struct.pack_into("<IIIII", head, 424, 1, BLOCK, 1, 2 * bitmap_blocks, min(max_pfn, 0xFFFFFFFF))
    struct.pack_into("<I", head, 460, 1)  # processors
    sub = bytearray(BLOCK)
    note = struct.pack("<III12s", 11, len(vmcoreinfo), 0, b"VMCOREINFO") + vmcoreinfo
    note += bytes(-len(note) % 4)
    if vmcoreinfo:
        struct.pack_into("<QQQQ", sub, 32, BLOCK + 280, len(vmcoreinfo), BLOCK + 256, len(note))
        sub[256 : 256 + len(note)] = note
    struct.pack_into("<Q", sub, 96, max_pfn)
    bits = np.zeros(bitmap_blocks * BLOCK * 8, dtype=np.uint8)
    bits[sorted(pages)] = 1
    bitmap = np.packbits(bits, bitorder="little").tobytes()
    start = (2 + 2 * bitmap_blocks) * BLOCK
    descriptors, data, end = [], [], start + 24 * len(pages)
    for pfn in sorted(pages):
        packed = zlib.compress(pages[pfn])
        flags = _ZLIB
        if len(packed) >= BLOCK:
            packed, flags = pages[pfn], 0
        descriptors.append(struct.pack("<QIIQ", end, len(packed), flags, 0))
        data.append(packed)
        end += len(packed)
    return b"".join((head, sub, bitmap, bitmap, *descriptors, *data))


def flattened(data, piece=3 * BLOCK):
    """Return ``data`` as makedumpfile -F writes it, and QEMU: pieces that say where they belong."""
    made = [struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(BLOCK, b"\0")]
    for at in range(0, len(data), piece):
        part = data[at : at + piece]
        made += [struct.pack(">qq", at, len(part)), part]
    return b"".join((*made, struct.pack(">qq", -1, -1)))
