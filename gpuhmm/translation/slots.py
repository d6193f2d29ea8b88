"""Where tables and large pages stand: the upper levels, walked in address order, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gpuhmm.mm.tables import Words
from gpuhmm.mm.x86 import (
    PAGE_NX,
    PAGE_PRESENT,
    PAGE_PROTNONE,
    PAGE_PSE,
    PAGE_RW,
    PAGE_USER,
    PMD_PFN_MASK,
    PUD_PFN_MASK,
    U64,
    level_shift,
)
from gpuhmm.translation.runs import MAPPING_GRANTED, MAPPING_NX, MAPPING_PROTNONE, MAPPING_USER, MAPPING_WRITE
from gpuhmm.translation.source import Tables
from gpuhmm.translation.words import large_reserved

#: Tables of level 2 that one part holds: up to 8,192 leaf tables, 4 million pages.
_PART = 16

_LARGE_MASKS = {2: PMD_PFN_MASK, 3: PUD_PFN_MASK}

#: What stands above the top table: everything is granted.
_ALL_GRANTED = MAPPING_GRANTED


@dataclass(frozen=True)
class Part:
    """Leaf tables and large pages of one stretch of addresses, each by address.

    ``rows``, ``vas`` and ``above`` are uint64[n] for leaf tables: row, address of slot 0, MAPPING_* bits of
    the entries on the way.  ``large`` is uint64[m, 4]: a run for each large page (see
    :data:`gpuhmm.translation.runs.RUN_COLUMNS`).  ``others`` is uint64[k, 3]: address, level and value of
    upper entries that are neither, but not 0 either.
    """

    rows: Words
    vas: Words
    above: Words
    large: Words
    others: Words


def parts(tables: Tables, start: int, end: int, *, max_tables: int | None = None) -> Iterator[Part]:
    """Yield what maps anything in ``[start, end)``, low addresses first.

    Both are addresses below 2^48 or 2^57, without the bits that canonical ones repeat; what lies across a
    border is yielded whole.  A table counts each time that it maps something.  ValueError after
    ``max_tables``: few tables that point to each other map more than anybody can look at.
    """
    yield from _Expansion(tables, start, end, max_tables).of_top()


def user_limit(tables: Tables) -> int:
    """Return more tables than a process ever has in its user half: each of them counts 16 times."""
    return (1 << 16) + 16 * (len(tables.upper) + len(tables.leaf))


class _Expansion:
    """One walk through all tables, and how many it came by."""

    def __init__(self, tables: Tables, start: int, end: int, max_tables: int | None) -> None:
        self.tables = tables
        self.start = start
        self.end = end
        self.max_tables = max_tables
        self.seen = 0

    def of_top(self) -> Iterator[Part]:
        """Yield all parts."""
        top = np.zeros(1, dtype=np.uint64)
        yield from self._below(self.tables.levels, top, top, np.full(1, _ALL_GRANTED))

    def _below(self, level: int, rows: Words, vas: Words, above: Words) -> Iterator[Part]:
        """Yield the parts below tables of ``level`` in ``rows``, which cover ``vas`` by address."""
        for row, va, flags in zip(rows, vas, above, strict=True):
            below = self._entries(level, row[None], va[None], flags[None])
            if level == 3:
                yield from self._small(below)
                continue
            if len(below.others):
                none = np.empty(0, dtype=np.uint64)
                yield Part(none, none, none, none.reshape(0, 4), below.others)
            yield from self._below(level - 1, below.rows, below.vas, below.above)

    def _small(self, middle: Part) -> Iterator[Part]:
        """Yield the parts below entries of level 3, cut after at most ``_PART`` tables of level 2."""
        cuts = [*range(0, len(middle.rows), _PART), len(middle.rows)] if len(middle.rows) else [0, 0]
        low = 0
        for first, past in pairwise(cuts):
            chosen = slice(first, past)
            below = self._entries(2, middle.rows[chosen], middle.vas[chosen], middle.above[chosen])
            # The large pages of level 3 up to the next part's first table belong to this one.
            high = int(middle.vas[past]) if past < len(middle.rows) else 1 << 63
            large = np.concatenate((_between(middle.large, low, high), below.large))
            others = np.concatenate((_between(middle.others, low, high), below.others))
            low = high
            yield Part(below.rows, below.vas, below.above, _sorted(large), _sorted(others))

    def _entries(self, level: int, rows: Words, vas: Words, above: Words) -> Part:
        found = _entries(self.tables, level, rows, vas, above, self.start, self.end)
        self.seen += len(found.rows)
        if self.max_tables is not None and self.seen > self.max_tables:
            raise ValueError(
                f"the tables point to each other so often that they map more than {self.max_tables} tables' "
                "worth of memory: look at a part of the addresses"
            )
        return found


def _between(table: Words, low: int, high: int) -> Words:
    return table[(table[:, 0] >= U64(low)) & (table[:, 0] < U64(high))]


def _sorted(table: Words) -> Words:
    return table[np.argsort(table[:, 0], kind="stable")]


def _entries(tables: Tables, level: int, rows: Words, vas: Words, above: Words, start: int, end: int) -> Part:
    """Return the tables that entries of ``level`` point to, and the large pages that they are."""
    shift = level_shift(level)
    pages = tables.upper[rows.astype(np.intp)]
    place, slots = np.nonzero(pages)
    at = vas[place] + (slots.astype(np.uint64) << U64(shift))
    inside = (at < U64(end)) & (at + U64(1 << shift) > U64(start))
    place, slots, at = place[inside], slots[inside], at[inside]
    values = pages[place, slots]
    flags = upper_flags(values, above[place])
    pse = (values & PAGE_PSE) != 0
    present = (values & PAGE_PRESENT) != 0
    child = tables.child[rows[place].astype(np.intp), slots]
    leads = present & ~pse & (child >= 0)
    large = np.zeros(len(values), dtype=np.bool_)
    if level <= 3:
        fine = (values & large_reserved(_LARGE_MASKS[level])) == 0
        large = pse & ((present & fine) | (~present & ((values & PAGE_PROTNONE) != 0)))
    runs = np.empty((int(large.sum()), 4), dtype=np.uint64)
    runs[:, 0] = at[large]
    if level <= 3:
        upright = np.where(present, values, ~values)
        runs[:, 1] = upright[large] & _LARGE_MASKS[level]
    runs[:, 2] = 1 << (shift - 12)
    runs[:, 3] = flags[large]
    rest = ~leads & ~large
    others = np.stack([at[rest], np.full(int(rest.sum()), level, dtype=np.uint64), values[rest]], axis=1)
    return Part(child[leads].astype(np.uint64), at[leads], flags[leads], runs, others)


def upper_flags(entries: Words, above: Words) -> Words:
    """Return the MAPPING_* bits of entries below others, as ``combined_flags`` does for one."""
    granted = np.where((entries & PAGE_RW) != 0, MAPPING_WRITE, U64(0))
    granted |= np.where((entries & PAGE_USER) != 0, MAPPING_USER, U64(0))
    taken = np.where((entries & PAGE_NX) != 0, MAPPING_NX, U64(0))
    taken |= np.where((entries & PAGE_PRESENT) == 0, MAPPING_PROTNONE, U64(0))
    return (granted & above & MAPPING_GRANTED) | ((taken | above) & ~MAPPING_GRANTED)
