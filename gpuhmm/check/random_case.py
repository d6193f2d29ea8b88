"""Random calls: spaces and requests that meet every state that the walk tells apart.

Everything follows from one ``random.Random``, so that a seed names a case and hypothesis can steer
and shrink the draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import numpy as np

from gpuhmm.check.case import Case, no_rows, sparse_entries
from gpuhmm.check.random_entry import leaf_table, upper_leaf
from gpuhmm.hmm.words import (
    HMM_PFN_DMA_MAPPED,
    HMM_PFN_P2PDMA,
    HMM_PFN_P2PDMA_BUS,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
)
from gpuhmm.mm import x86
from gpuhmm.mm.entry import NX, PROTNONE, RW, TABLE, USER, A, D
from gpuhmm.mm.profile import PROFILES, KernelProfile
from gpuhmm.mm.tables import Words
from gpuhmm.mm.vma import (
    VM_EXEC,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_IO,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from gpuhmm.mm.x86 import ZERO_PFN, level_shift

T = TypeVar("T")

HUGE_ZERO_PFN = 0x2600
OWNERS = ((0x10_0000, 0x20_0000, 0xABCD), (0x30_0000, 0x30_0800, 0xFEED))

_FAULT = int(HMM_PFN_REQ_FAULT)
_WRITE = int(HMM_PFN_REQ_WRITE)
_ALL = (1 << 64) - 1
_MAPPED = HMM_PFN_DMA_MAPPED | HMM_PFN_P2PDMA | HMM_PFN_P2PDMA_BUS
_RW = VM_READ | VM_WRITE

#: Flags of areas, the usual ones more often.
_VM_FLAGS = (
    *[_RW] * 6,
    *[VM_READ] * 3,
    VM_READ | VM_EXEC,
    _RW | VM_SHARED,
    VM_READ | VM_SHARED,
    _RW | VM_HUGEPAGE,
    _RW | VM_MIXEDMAP,
    VM_WRITE,
    VM_EXEC,
    0,
    _RW | VM_IO,
    _RW | VM_PFNMAP,
)

#: Flags next to the PFN of an entry that points to a table; the last ones count as bad at some level.
_TABLE_FLAGS = (
    *[TABLE] * 12,
    int(x86.KERNPG_TABLE),
    TABLE | NX,
    TABLE & ~A,
    TABLE & ~(RW | USER),
    TABLE & ~D,
    TABLE | PROTNONE,
    TABLE | 1 << 57,
    TABLE | 1 << 58,
)


@dataclass
class _Draft:
    """A case in the making."""

    rng: Random
    profile: KernelProfile
    levels: int
    start: int
    end: int
    table_pfns: list[int] = field(default_factory=list)
    tables: list[Words] = field(default_factory=list)
    #: Where the entries end that areas of hugetlb pages need: (first, past, level).
    hugetlb: list[tuple[int, int, int]] = field(default_factory=list)

    def choose(self, options: Sequence[T]) -> T:
        return options[self.rng.randrange(len(options))]

    def chance(self, percent: int) -> bool:
        return self.rng.randrange(100) < percent

    def bits(self) -> int:
        return self.rng.getrandbits(64)


def random_case(rng: Random, name: str, max_pages: int = 1 << 19, kernel: str | None = None) -> Case:
    """Return a case of at most ``max_pages`` pages, most of them small; of any kernel if none is named."""
    drawn = sorted(PROFILES)[rng.randrange(len(PROFILES))]
    kernel = drawn if kernel is None else kernel
    levels = 4 + rng.randrange(2)
    start, end = _range(rng, levels, max_pages)
    draft = _Draft(rng, PROFILES[kernel], levels, start, end)
    vmas = _vmas(draft)
    _table(draft, levels, 0)
    table_entries = sparse_entries(np.stack(draft.tables))
    default_flags, pfn_flags_mask, hmm_pfns_in = _request(draft)
    return Case(
        name=name,
        kernel=kernel,
        levels=levels,
        start=start,
        end=end,
        default_flags=default_flags,
        pfn_flags_mask=pfn_flags_mask,
        dev_private_owner=draft.choose((0, 0xABCD, 0xFEED, 0x1234)),
        invalidate_after=draft.choose((-1, -1, -1, -1, 0, 1, 2, 5, 40, 520)),
        zero_pfn=ZERO_PFN,
        huge_zero_pfn=HUGE_ZERO_PFN,
        highest_memmap_pfn=draft.choose((x86.MAX_PFN - 1, x86.MAX_PFN - 1, 0x3F_FFFF, 0x1_0000_0000)),
        device_owners=np.array(OWNERS, dtype=np.uint64),
        vmas=vmas,
        table_pfns=np.array(draft.table_pfns, dtype=np.uint64),
        table_entries=table_entries,
        hmm_pfns_in=hmm_pfns_in,
        shstk=draft.chance(30),
        fault_seed=rng.getrandbits(32),
    )


def _range(rng: Random, levels: int, max_pages: int) -> tuple[int, int]:
    """Return a range that likes to lie across, at, or just before or after the end of a table entry."""
    sizes = (1, 3, 16, 64, 200, 511, 512, 513, 700, 1024, 1600, 2500)
    npages = sizes[rng.randrange(len(sizes))]
    if rng.randrange(60) == 0:
        npages = (1 << 18) + rng.randrange(1, 1 << 17)  # more than 1 GiB: holes of that size
    npages = min(npages, max_pages)
    shift = (21, 21, 21, 30, 39, 39 if levels == 4 else 48)[rng.randrange(6)]
    border = rng.randrange(1, 1 << (9 * levels + 12 - shift)) << shift
    back = rng.randrange(npages + 1) if rng.randrange(3) else (0, npages)[rng.randrange(2)]
    start = border - (back << 12)
    top = 1 << (12 + 9 * levels)
    start = max(0, min(start, top - (npages << 12)))
    return start, start + (npages << 12)


def _vmas(draft: _Draft) -> Words:
    """Return areas over and around the range; some pages of it lie in none."""
    rows: list[tuple[int, int, int, int]] = []
    top = 1 << (12 + 9 * draft.levels)
    if draft.chance(10):
        return _columns([(0, top, _RW, 12)])
    at = max(0, draft.start - (draft.rng.randrange(600) << 12))
    while at < min(draft.end + (100 << 12), top):
        left = (draft.end - at) >> 12
        pages = 1 + draft.rng.randrange(max(1, min(2 * max(left, 1), 1 << 19)))
        past = min(at + (pages << 12), top)
        kind = draft.rng.randrange(12)
        if kind == 0:
            at = past
            continue
        if kind <= 2:
            shift = 30 if kind == 1 and draft.chance(30) else 21
            first = at + (1 << shift) - 1 >> shift << shift
            past = min(first + (draft.rng.randrange(1, 4) << shift), top)
            if past > first and first - at < 4 << 21:
                rows.append((first, past, draft.choose(_VM_FLAGS) | VM_HUGETLB, shift))
                draft.hugetlb.append((first, past, 3 if shift == 30 else 2))
                at = past
            continue
        rows.append((at, past, draft.choose(_VM_FLAGS), 12))
        at = past
    return _columns(rows)


def _columns(rows: list[tuple[int, int, int, int]]) -> Words:
    return np.array(rows, dtype=np.uint64) if rows else no_rows(4)


def _table(draft: _Draft, level: int, base: int) -> int:
    """Make the table of ``level`` whose first entry covers ``base``; return its PFN."""
    pfn = 0x50_0000 + len(draft.table_pfns) * 7 + (1 << 39 if draft.chance(3) else 0)
    place = len(draft.tables)
    draft.table_pfns.append(pfn)
    draft.tables.append(np.zeros(512, dtype=np.uint64))
    if level == 1:
        draft.tables[place] = leaf_table(draft.rng, draft.profile, draft.levels, ZERO_PFN)
        return pfn
    shift = level_shift(level)
    first = max(0, (draft.start - base) >> shift) if draft.start > base else 0
    last = min(511, (draft.end - 1 - base) >> shift)
    for slot in range(first, last + 1):
        if len(draft.tables) > 40:
            break
        draft.tables[place][slot] = _upper_entry(draft, level, base + (slot << shift))
    return pfn


def _upper_entry(draft: _Draft, level: int, va: int) -> int:
    roll = draft.rng.randrange(100)
    if any(
        first < va + (1 << level_shift(level)) and va < past and level == at
        for first, past, at in draft.hugetlb
    ):
        return upper_leaf(draft.rng, draft.profile, draft.levels, level) if roll < 85 else 0
    if roll < (8 if level > 2 else 12):
        return draft.choose((0, 0, 0, A, D, A | D)) if level < 5 or draft.levels == 4 else 0
    if (level == 3 and roll < 16) or (level == 2 and roll < 45):
        return upper_leaf(draft.rng, draft.profile, draft.levels, level)
    flags = draft.choose(_TABLE_FLAGS)
    return _table(draft, level - 1, va) << 12 | flags


def _request(draft: _Draft) -> tuple[int, int, Words]:
    """Return default_flags, pfn_flags_mask and the input words."""
    npages = (draft.end - draft.start) >> 12
    default_flags = draft.choose((0, 0, 0, _FAULT, _FAULT | _WRITE, _WRITE, draft.bits()))
    mask = draft.choose((0, 0, _FAULT | _WRITE, _FAULT | _WRITE, _FAULT, _WRITE, _ALL, draft.bits()))
    numbers = np.random.default_rng(draft.bits())
    garbage = numbers.integers(0, 1 << 64, npages, dtype=np.uint64)
    kind = draft.rng.randrange(5)
    if kind == 1:
        return default_flags, mask, garbage
    # Here and there a page that was mapped for DMA: words keep these bits from v6.16 on.
    mapped = (garbage & _MAPPED) * (numbers.integers(0, draft.choose((2, 300)), npages) == 0)
    kept = mapped.astype(np.uint64) if draft.chance(40) else np.zeros(npages, dtype=np.uint64)
    if kind == 0:
        return default_flags, mask, kept
    flags = np.array((_FAULT, _FAULT | _WRITE, _WRITE), dtype=np.uint64)[garbage % np.uint64(3)]
    if kind == 2:
        return default_flags, mask, flags | kept
    spacing = np.uint64(draft.choose((2, 16, 300, max(npages, 1))))
    chosen = (garbage >> np.uint64(8)) % spacing == 0
    return default_flags, mask, np.where(chosen, flags, np.uint64(0)) | kept
