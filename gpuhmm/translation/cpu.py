"""Translation on the CPU: the shared decisions over chunks, in parallel with numba."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit, prange

from gpuhmm.kernels.compile_cache import cached
from gpuhmm.mm.x86 import ALL_ONES, INDEX_MASK, ONE, PAGE_SHIFT, PMD_SHIFT, PMD_SIZE, TABLE_SHIFT, U64, ZERO
from gpuhmm.shared import register
from gpuhmm.translation.runs import RUN_COLUMNS, compared_bits, count_runs, fill_runs
from gpuhmm.translation.words import (
    NO_ROW,
    NOT_CANONICAL_WORD,
    is_canonical,
    pte_translation,
    slot_at,
    slot_word,
)

if TYPE_CHECKING:
    from gpuhmm.mm.tables import Words
    from gpuhmm.translation.source import Tables

register()

#: Addresses, and slots of 2 MiB, that one chunk holds.
_ADDRESSES = 1 << 14
_SLOTS = U64(1 << 5)
_TABLE_ENTRIES = INDEX_MASK + ONE
_PMD_OFFSET = PMD_SIZE - ONE


def _translate_chunk(vas, low, high, levels, upper, child, leaf, words):
    # Neighbours mostly lie in the same 2 MiB: the descent is kept until one does not.
    last = ALL_ONES
    slot = slot_at(ZERO, levels, upper, child)
    for i in range(low, high):
        va = vas[i]
        if va >> PMD_SHIFT != last:
            if not is_canonical(va, levels):
                words[i] = NOT_CANONICAL_WORD
                continue
            slot = slot_at(va, levels, upper, child)
            last = va >> PMD_SHIFT
        words[i] = slot_word(va, slot, leaf)


_translate_chunk = njit(_translate_chunk)


def _translate(vas, levels, upper, child, leaf, words):
    chunks = (vas.size + _ADDRESSES - 1) // _ADDRESSES
    for chunk in prange(chunks):
        low = chunk * _ADDRESSES
        _translate_chunk(vas, low, min(low + _ADDRESSES, vas.size), levels, upper, child, leaf, words)


def _translate_slot(va, count, at, levels, upper, child, leaf, words):
    """Write ``count`` words from ``at`` on, of pages that begin at ``va`` and lie in one slot."""
    slot = slot_at(va, levels, upper, child)
    if slot.row == NO_ROW:
        for i in range(count):
            words[at + U64(i)] = slot.word + (((va & _PMD_OFFSET) + (U64(i) << PAGE_SHIFT)) * slot.step)
    else:
        first = (va >> PAGE_SHIFT) & INDEX_MASK
        for i in range(count):
            words[at + U64(i)] = pte_translation(leaf[slot.row, first + U64(i)])


_translate_slot = njit(_translate_slot)


def _translate_range(start, npages, levels, upper, child, leaf, words):
    base = start >> PMD_SHIFT
    lead = (start >> PAGE_SHIFT) & INDEX_MASK  # pages of the first slot below the start
    slots = (lead + npages + INDEX_MASK) >> TABLE_SHIFT
    chunks = np.int64((slots + _SLOTS - ONE) // _SLOTS)
    for chunk in prange(chunks):
        first = U64(chunk) * _SLOTS
        past = min(first + _SLOTS, slots)
        for i in range(first, past):
            low = ZERO
            va = start
            if U64(i) > ZERO:
                low = (U64(i) << TABLE_SHIFT) - lead
                va = (base + U64(i)) << PMD_SHIFT
            high = min(((U64(i) + ONE) << TABLE_SHIFT) - lead, npages)
            _translate_slot(va, high - low, low, levels, upper, child, leaf, words)


def _count(rows, above, split_by, leaf, counts):
    for i in prange(rows.size):
        compared = compared_bits(above[i], split_by)
        counts[i] = np.int64(count_runs(rows[i], ZERO, _TABLE_ENTRIES, compared, leaf))


def _fill(rows, vas, above, split_by, places, leaf, runs):
    for i in prange(rows.size):
        compared = compared_bits(above[i], split_by)
        fill_runs(rows[i], ZERO, _TABLE_ENTRIES, vas[i], above[i], compared, U64(places[i]), leaf, runs)


#: Up to this many pages one thread does it: starting threads costs more.
_SEQUENTIAL_PAGES = 1 << 17

translate_parallel = cached(njit(_translate, parallel=True))
translate_sequential = cached(njit(_translate))
range_parallel = cached(njit(_translate_range, parallel=True))
range_sequential = cached(njit(_translate_range))
count_parallel = cached(njit(_count, parallel=True))
count_sequential = cached(njit(_count))
fill_parallel = cached(njit(_fill, parallel=True))
fill_sequential = cached(njit(_fill))


def translate(tables: Tables, vas: Words, words: Words) -> None:
    """Write the word of every address, uint64[n], to ``words``, uint64[n]."""
    compiled = translate_sequential if len(vas) <= _SEQUENTIAL_PAGES else translate_parallel
    compiled(vas, U64(tables.levels), tables.upper, tables.child, tables.leaf, words)


def translate_range(tables: Tables, start: int, words: Words) -> None:
    """Write the words of consecutive pages from the canonical address ``start`` on to ``words``."""
    npages = len(words)
    compiled = range_sequential if npages <= _SEQUENTIAL_PAGES else range_parallel
    compiled(U64(start), U64(npages), U64(tables.levels), tables.upper, tables.child, tables.leaf, words)


def table_runs(tables: Tables, rows: Words, vas: Words, above: Words, split_by: int) -> Words:
    """Return the runs of leaf tables, uint64[n, 4], by place in ``rows`` and then by slot.

    ``rows``, ``vas`` and ``above`` are uint64[n]: the table, the address that its slot 0 maps, and the
    MAPPING_* bits of the entries on the way to it.
    """
    small = len(rows) << 9 <= _SEQUENTIAL_PAGES
    count, fill = (count_sequential, fill_sequential) if small else (count_parallel, fill_parallel)
    counts = np.empty(len(rows), dtype=np.int64)
    count(rows, above, U64(split_by), tables.leaf, counts)
    places = np.cumsum(counts) - counts
    runs = np.empty((int(counts.sum()), RUN_COLUMNS), dtype=np.uint64)
    fill(rows, vas, above, U64(split_by), places, tables.leaf, runs)
    return runs
