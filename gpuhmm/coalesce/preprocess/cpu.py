"""Preprocessing on the CPU: each thread takes a run of batches, with scratch of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import get_num_threads, njit, prange

from gpuhmm.coalesce.preprocess.merge import RANK_BITS, merge_batch, sort_key
from gpuhmm.coalesce.preprocess.table import COUNTS, DUPLICATE, NEW_WINDOW, BatchTable
from gpuhmm.kernels.compile_cache import cached
from gpuhmm.mm.x86 import ONE, U64, ZERO
from gpuhmm.shared import register

if TYPE_CHECKING:
    from gpuhmm.coalesce.preprocess.rules import Rules
    from gpuhmm.coalesce.trace import FaultTrace

register()

#: Up to this many faults one thread does it: starting threads costs more.
_SEQUENTIAL_FAULTS = 1 << 14
#: Up to this many keys are sorted by insertion.
_INSERTION = 24
_DIGIT_BITS = U64(8)
_DIGIT_MASK = U64(255)
_NOBODY = np.uint32(0xFFFF_FFFF)
_DUPLICATE = np.uint8(DUPLICATE)
_NEW_WINDOW = np.uint8(NEW_WINDOW)


def _insert(count, keys, order):
    for i in range(1, count):
        key = keys[i]
        index = order[i]
        at = i
        while at > 0 and keys[at - 1] > key:
            keys[at] = keys[at - 1]
            order[at] = order[at - 1]
            at -= 1
        keys[at] = key
        order[at] = index


_insert = njit(_insert)


def _pass(count, shift, keys, order, to_keys, to_order, places):
    """Sort by the eight bits of the keys from ``shift`` on, equal ones in their order."""
    places[:] = 0
    for i in range(count):
        places[(keys[i] >> shift) & _DIGIT_MASK] += np.uint32(1)
    place = np.uint32(0)
    for digit in range(256):
        many = places[digit]
        places[digit] = place
        place += many
    for i in range(count):
        digit = (keys[i] >> shift) & _DIGIT_MASK
        to_keys[places[digit]] = keys[i]
        to_order[places[digit]] = order[i]
        places[digit] += np.uint32(1)


_pass = njit(_pass)


def _sort(count, keys, order, places):
    """Sort keys and their order, uint[2, batch] of which row 0 is given; return the row of the result."""
    differing = ZERO
    sorted_ = True
    for i in range(1, count):
        differing |= keys[0, i] ^ keys[0, i - 1]
        sorted_ = sorted_ and keys[0, i - 1] <= keys[0, i]
    if sorted_:
        return 0
    if count <= _INSERTION:
        _insert(count, keys[0], order[0])
        return 0
    row = 0
    shift = ZERO
    while differing >> shift != ZERO:
        # Bits that all keys share are skipped: pages of one batch are mostly near each other.
        while (differing >> shift) & ONE == ZERO:
            shift += ONE
        _pass(count, shift, keys[row], order[row], keys[1 - row], order[1 - row], places)
        row = 1 - row
        shift += _DIGIT_BITS
        if shift >= U64(64):
            break
    return row


_sort = njit(_sort)


def _scan(count, at, shift, keys, order, held, held_masks, page_of, window_of, head, outs):
    """Store sorted representatives from ``at`` on; return unique pages, windows, counted duplicates."""
    index, instances, masks, flags = outs
    pages = 0
    windows = 0
    duplicates = 0
    last = ZERO
    for i in range(count):
        fault = order[i]
        page = keys[i] >> RANK_BITS
        flag = np.uint8(0)
        duplicates += held[fault]
        if i > 0 and page == last:
            flag = _DUPLICATE
        else:
            if i == 0 or page >> shift != last >> shift:
                flag = _NEW_WINDOW
                windows += 1
            head[pages] = _NOBODY
            window_of[pages] = windows
            pages += 1
            duplicates -= 1
        last = page
        page_of[fault] = pages - 1
        index[at + i] = fault
        instances[at + i] = held[fault]
        masks[at + i] = held_masks[fault]
        flags[at + i] = flag
    return pages, windows, duplicates


_scan = njit(_scan)


def _origins(count, pages, row, utlb, representative, page_of, window_of, head, behind, seen):
    """Return how many pairs of page and µTLB there are, and the most faults in one window."""
    for i in range(count):
        page = page_of[representative[i]]
        behind[i] = head[page]
        head[page] = np.uint32(i)
    pairs = 0
    most = 0
    here = 0
    for page in range(pages):
        if page > 0 and window_of[page] != window_of[page - 1]:
            here = 0
        # Rows of earlier batches are smaller: what they left in ``seen`` equals no stamp of this one.
        stamp = row + U64(page) + ONE
        i = head[page]
        while i != _NOBODY:
            here += 1
            if seen[utlb[i]] != stamp:
                seen[utlb[i]] = stamp
                pairs += 1
            i = behind[i]
        most = max(most, here)
    return pairs, most


_origins = njit(_origins)


def _run(first, past, batch, merge, ranks, shift, columns, scratch, representative, outs, counts):
    """Do the batches ``[first, past)``; store from the row of the first on and return how many."""
    va, access, space, utlb = columns
    keys, order, places, held, held_masks, page_of, window_of, head, behind, last_of_utlb, seen = scratch
    begun = first * batch
    at = begun
    for number in range(first, past):
        low = number * batch
        high = min(low + batch, va.size)
        count = high - low
        vas = va[low:high]
        accesses = access[low:high]
        spaces = space[low:high]
        utlbs = utlb[low:high]
        into = representative[low:high]
        left = 0
        if merge:
            merge_batch(
                U64(count), U64(low), ZERO, vas, accesses, spaces, utlbs, last_of_utlb, into, held, held_masks
            )
            for i in range(count):
                if into[i] == i:
                    keys[0, left] = sort_key(U64(spaces[i]), vas[i], U64(accesses[i]), ranks)
                    order[0, left] = np.uint16(i)
                    left += 1
        else:
            for i in range(count):
                into[i] = np.uint16(i)
                held[i] = np.uint32(1)
                held_masks[i] = np.uint8(ONE << U64(accesses[i]))
                keys[0, i] = sort_key(U64(spaces[i]), vas[i], U64(accesses[i]), ranks)
                order[0, i] = np.uint16(i)
            left = count
        row = _sort(left, keys, order, places)
        pages, windows, duplicates = _scan(
            left, at, shift, keys[row], order[row], held, held_masks, page_of, window_of, head, outs
        )
        pairs, most = _origins(count, pages, U64(low), utlbs, into, page_of, window_of, head, behind, seen)
        counts[0, number] = count
        counts[1, number] = left
        counts[2, number] = pages
        counts[3, number] = count - pairs
        counts[4, number] = pairs - pages
        counts[5, number] = windows
        counts[6, number] = most
        counts[7, number] = duplicates
        at += left
    return at - begun


_run = njit(_run)


def _coalesce(threads, batch, utlbs, merge, ranks, shift, columns, representative, outs, counts, stored):
    batches = counts.shape[1]
    for thread in prange(threads):
        scratch = (
            np.empty((2, batch), dtype=np.uint64),
            np.empty((2, batch), dtype=np.uint16),
            np.empty(256, dtype=np.uint32),
            np.empty(batch, dtype=np.uint32),
            np.empty(batch, dtype=np.uint8),
            np.empty(batch, dtype=np.uint16),
            np.empty(batch, dtype=np.uint32),
            np.empty(batch, dtype=np.uint32),
            np.empty(batch, dtype=np.uint32),
            np.zeros(utlbs, dtype=np.uint64),
            np.zeros(utlbs, dtype=np.uint64),
        )
        first = batches * thread // threads
        past = batches * (thread + 1) // threads
        stored[thread] = _run(
            first, past, batch, merge, ranks, shift, columns, scratch, representative, outs, counts
        )


coalesce_parallel = cached(njit(_coalesce, parallel=True))
coalesce_sequential = cached(njit(_coalesce))


def coalesce(trace: FaultTrace, rules: Rules, batch: int, window: int) -> BatchTable:
    """Return the batches of a trace; see :func:`gpuhmm.coalesce.preprocess.coalesce.coalesce_trace`."""
    faults = len(trace)
    batches = -(-faults // batch)
    representative = np.empty(faults, dtype=np.uint16)
    outs: tuple[Any, ...] = tuple(
        np.empty(faults, dtype=dtype) for dtype in (np.uint16, np.uint32, np.uint8, np.uint8)
    )
    counts = np.zeros((len(COUNTS), batches), dtype=np.uint32)
    threads = 1 if faults <= _SEQUENTIAL_FAULTS else min(get_num_threads(), batches)
    stored = np.zeros(threads, dtype=np.int64)
    compiled = coalesce_sequential if threads == 1 else coalesce_parallel
    columns = (trace.va, trace.access, trace.space, trace.utlb)
    ranks = np.array(rules.ranks, dtype=np.uint8)
    shift = U64(window.bit_length() - 13)
    compiled(
        threads, batch, trace.utlbs, rules.merge, ranks, shift, columns, representative, outs, counts, stored
    )
    firsts = np.zeros(batches + 1, dtype=np.int64)
    np.cumsum(counts[COUNTS.index("coalesced")], out=firsts[1:])
    starts = np.arange(threads, dtype=np.int64) * batches // threads * batch
    index, instances, masks, flags = (_close_gaps(column, starts, stored) for column in outs)
    return BatchTable(rules, batch, window, representative, index, instances, masks, flags, firsts, counts)


def _close_gaps(column: Any, starts: Any, stored: Any) -> Any:
    """Return what the threads stored in one piece; a copy where most of the column would be left unused."""
    end = 0
    for start, many in zip(starts.tolist(), stored.tolist(), strict=True):
        if start != end:
            column[end : end + many] = column[start : start + many]
        end += many
    return column[:end].copy() if 2 * end < len(column) else column[:end]
