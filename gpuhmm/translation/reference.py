"""Translation one address at a time, to be read next to the manual; it judges the other back ends.

It shares no code with them.  Source: Intel SDM volume 3, figures 4-8 to 4-10,
tables 4-16 and 4-18.
"""

from __future__ import annotations

from gpuhmm.mm.tables import Words
from gpuhmm.translation.source import Tables

_P, _PSE, _PROTNONE = 1, 1 << 7, 1 << 8
_ADDRESS = 0x000F_FFFF_FFFF_F000
_ACCESSED_DIRTY = 0x60

MAPPED, PROTNONE, NONE, NOT_PRESENT, MISSING, RESERVED, NOT_CANONICAL = range(7)


def translate_va(tables: Tables, va: int) -> int:
    """Return the word of one address: see :mod:`gpuhmm.translation.words`."""
    bits = 12 + 9 * tables.levels
    if va >> (bits - 1) not in (0, (1 << (65 - bits)) - 1):
        return NOT_CANONICAL << 56
    row = 0
    for level in range(tables.levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        slot = va >> shift & 511
        entry = int(tables.leaf[row, slot] if level == 1 else tables.upper[row, slot])
        decided = level << 52
        large = level > 1 and bool(entry & _PSE)
        if not entry & _P:
            if not entry & ~_ACCESSED_DIRTY:
                return NONE << 56 | decided
            # Linux marks a page without access so, and stores its address inverted.
            if entry & _PROTNONE and (level == 1 or (large and level <= 3)):
                return PROTNONE << 56 | decided | _page(~entry, va, shift)
            return NOT_PRESENT << 56 | decided
        # Below the address of a large page bit 12 is PAT, and those above it are reserved.
        if large and (level > 3 or entry & (1 << shift) - (1 << 13)):
            return RESERVED << 56 | decided
        if level == 1 or large:
            return MAPPED << 56 | decided | _page(entry, va, shift)
        row = int(tables.child[row, slot])
        if row < 0:
            return MISSING << 56 | decided
    raise AssertionError("level 1 returns")


def _page(entry: int, va: int, shift: int) -> int:
    inside = (1 << shift) - 1
    return entry & _ADDRESS & ~inside | va & inside


def translate(tables: Tables, vas: Words, words: Words) -> None:
    """Write the word of every address, uint64[n], to ``words``, uint64[n]."""
    for i, va in enumerate(vas.tolist()):
        words[i] = translate_va(tables, va)


def translate_range(tables: Tables, start: int, words: Words) -> None:
    """Write the words of consecutive pages from ``start`` on to ``words``."""
    for i in range(len(words)):
        words[i] = translate_va(tables, start + (i << 12))
