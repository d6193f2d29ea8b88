"""Random page-table entries: every state that mm/hmm.c tells apart, and the ones next to them."""

from __future__ import annotations

from random import Random

import numpy as np

from gpuhmm.mm import x86
from gpuhmm.mm.entry import NX, PFN, PROTNONE, PSE, RW, SPECIAL, USER, A, D, P, encode_swap
from gpuhmm.mm.profile import KernelProfile
from gpuhmm.mm.tables import Words

_PRESENT = P | USER | A | NX
#: SOFTW4 and SOFTW5: DEVMAP is either of them, or none, by kernel.
_SOFTWARE_BITS = (1 << 57, 1 << 58, 1 << 57 | 1 << 58)

#: PFNs at the limits of what they are compared with.
_PFNS = (0, 1, 0x3F_FFFF, 0x40_0000, 0x1_0000_0000, 0x1_0000_0001, x86.MAX_PFN - 1)


def leaf_table(rng: Random, profile: KernelProfile, levels: int, zero_pfn: int) -> Words:
    """Return 512 PTEs: one state throughout or a mix, with now and then a single odd one out."""
    numbers = np.random.default_rng(rng.getrandbits(64))
    # Few distinct entries are drawn one by one; the table is filled from them at once.
    kinds = np.array([_pte(rng, profile, levels, zero_pfn) for _ in range(8)], dtype=np.uint64)
    pfns = numbers.integers(0, 1 << 22, 512, dtype=np.uint64) << x86.PAGE_SHIFT
    read_write = pfns | np.uint64(_PRESENT | RW | D)
    style = rng.randrange(8)
    if style <= 2:
        table = read_write
    elif style == 3:
        table = pfns | np.uint64(_PRESENT)
    elif style == 4:
        table = np.where(numbers.integers(0, 4, 512) == 0, np.uint64(0), read_write)
    elif style == 5:
        table = np.full(512, kinds[0])
    elif style == 6:
        table = kinds[numbers.integers(0, 8, 512)]
    else:
        table = np.where(numbers.integers(0, 20, 512) == 0, kinds[numbers.integers(0, 8, 512)], read_write)
    if rng.randrange(2):
        table[rng.randrange(512)] = kinds[1]
    return table


def _pte(rng: Random, profile: KernelProfile, levels: int, zero_pfn: int) -> int:
    pfn = _PFNS[rng.randrange(len(_PFNS))] if rng.randrange(4) == 0 else rng.randrange(1 << 22)
    frame = pfn << 12
    writable = RW if rng.randrange(2) else 0
    kind = rng.randrange(13)
    if kind == 0:
        return (0, 0, A, D, A | D)[rng.randrange(5)]
    if kind == 1:
        return frame | _PRESENT | writable
    if kind == 2:
        return frame | _PRESENT | writable | SPECIAL
    if kind == 3:
        return frame | _PRESENT | writable | _software_bits(rng) | (SPECIAL if rng.randrange(2) else 0)
    if kind == 4:
        return zero_pfn << 12 | _PRESENT | SPECIAL | (writable if rng.randrange(4) == 0 else 0)
    if kind == 5:
        return ((~frame) & PFN) | PROTNONE | writable | (SPECIAL if rng.randrange(4) == 0 else 0)
    if kind == 6:
        return rng.getrandbits(64)
    if kind == 7:  # of a shadow stack, or read-only after it was written
        return frame | _PRESENT | D | (1 << 58 if rng.randrange(2) else 0)
    return swap_entry(rng, profile, levels)


def swap_entry(rng: Random, profile: KernelProfile, levels: int) -> int:
    """Return a non-present entry of any type, with a device's PFN where the type has one."""
    swp_type = rng.randrange(32) if rng.randrange(2) else _special_type(rng, profile)
    offset = (0x10_0000, 0x1F_FFFF, 0x20_0000, 0x30_0001, 0x30_0800, 0x77)[rng.randrange(6)]
    offset |= rng.getrandbits(3) << profile.swp_pfn_bits[levels - 4]
    if swp_type == profile.swp_pte_marker and rng.randrange(8):
        offset = rng.randrange(profile.pte_marker_mask + 2)  # all kinds, none, and a bit that means nothing
    if swp_type == 0 and rng.randrange(2):
        offset = 0
    return encode_swap(swp_type, offset & ((1 << 50) - 1)) | rng.getrandbits(4) << 1 & 0x1E


def _special_type(rng: Random, profile: KernelProfile) -> int:
    types = [
        value
        for name, value in vars(profile).items()
        if name.startswith("swp_") and isinstance(value, int) and value < 32
    ]
    types.append(0)
    return types[rng.randrange(len(types))]


def upper_leaf(rng: Random, profile: KernelProfile, levels: int, level: int) -> int:
    """Return an entry of level 2 or 3 at which the descent ends: huge, devmap, swap, half valid."""
    size = 9 * (level - 1)
    pfn = (rng.randrange(1 << 22) << size) & (x86.MAX_PFN - 1)
    frame = pfn << 12
    writable = RW if rng.randrange(2) else 0
    kind = rng.randrange(14)
    if kind <= 4:
        return frame | _PRESENT | PSE | writable
    if kind == 5:
        return frame | _PRESENT | PSE | _software_bits(rng) | writable
    if kind == 6:
        return frame | _PRESENT & ~1 | PSE | writable  # P cleared while it is split
    if kind == 7:
        return ((~frame) & PFN) | PROTNONE | PSE | writable
    if kind == 8 and level == 3:
        huge = profile.page_devmap
        if rng.randrange(2) or not huge:
            huge = PSE | _software_bits(rng)
        return frame | _PRESENT & ~1 | huge | writable
    if kind == 9:
        return frame | _PRESENT | PSE | writable | 1 << 12  # PAT_LARGE
    if kind == 10:
        return frame | _PRESENT | PSE | D | (1 << 58 if rng.randrange(2) else 0)
    if kind == 11:
        return frame | _PRESENT | D | profile.page_devmap if profile.page_devmap else 0
    if level == 3:
        return 0
    return swap_entry(rng, profile, levels)


def _software_bits(rng: Random) -> int:
    return _SOFTWARE_BITS[rng.randrange(len(_SOFTWARE_BITS))]
