"""Words of leaf tables and fills on the CPU, eight at a time, into the caches or past them.

A walk that can stop keeps the words of a table it has looked at, until no page below can stop it any
more; one that cannot writes them where they belong at once.  Either way an entry is loaded from memory
once and a word goes there once, and each is decided once.
"""

from __future__ import annotations

from numba import njit

from gpuhmm.hmm.walk.branchless import (
    OWNED,
    STOPS,
    UNUSUAL,
    any_word,
    differing,
    doubts,
    may_be_owned,
    may_stop,
    plain_word,
    room_above,
    unusual,
    usual_word,
)
from gpuhmm.hmm.walk.constants import asks_by_page
from gpuhmm.hmm.walk.extent import KIND_FORCED, KIND_LEAF, extent_at
from gpuhmm.hmm.walk.leaf import granted_to_all, keeps_input, write_leaf_beside_input
from gpuhmm.hmm.walk.pte import may_be_device_private, pte_word
from gpuhmm.hmm.walk.span import NO_STOP
from gpuhmm.kernels.lanes import (
    LINE,
    address_of,
    any_of,
    counted,
    load_line,
    prefetch,
    spread,
    store_line,
    store_line_past_caches,
)
from gpuhmm.mm.x86 import INDEX_MASK, ONE, PAGE_PRESENT, PAGE_SHIFT, PAGE_SIZE, U64, ZERO
from gpuhmm.shared import register

register()

#: Pages of a leaf table.
TABLE_PAGES = U64(512)
_TABLE_SHIFT = U64(9)
#: Entries that are asked for ahead of their load.  From 32 to 256 the time is the same.
_AHEAD = U64(128)
_WORD_SHIFT = U64(3)
_IN_PAGE = PAGE_SIZE - ONE
#: Bytes that stores may lie in a page ahead of later loads before these wait for them: what a processor
#: has under way.
_UNDER_WAY = U64(1024)


def is_odd(hmm_pfns, page):
    """Return ONE where the address of ``hmm_pfns[page]`` is no multiple of 16, else ZERO."""
    return (address_of(hmm_pfns, page) >> _WORD_SHIFT) & ONE


def keep_table(row, page, walk, arrays, kept, place):
    """Write the words of the leaf table in ``row`` to ``kept[place]`` on.

    All pages are taken for plain ones; where they are not, for usual ones; and only where they are not,
    their table being near by now, for any.  Return whether one may stop the walk, and whether requests were
    read, the first from ``hmm_pfns[page]``.
    """
    first = row << _TABLE_SHIFT
    granted = granted_to_all(walk)
    room = room_above(walk)
    unplain = doubts(granted)
    doubt = spread(ZERO)
    slot = ZERO
    exact = walk.shadow_stack != ZERO
    if not exact and not any_of(differing(load_line(arrays.leaf, first), granted) + room, unplain):
        while slot < TABLE_PAGES:
            prefetch(arrays.leaf, first + slot + _AHEAD)
            ptes = load_line(arrays.leaf, first + slot)
            doubt = doubt | (differing(ptes, granted) + room)
            store_line(kept, place + slot, plain_word(ptes, granted))
            slot = slot + LINE
        if not any_of(doubt, unplain):
            return False, False
    by_page = asks_by_page(walk)
    stops = spread(ZERO)
    request = spread(ZERO)
    if not exact:
        doubt = spread(ZERO)
        slot = ZERO
        while slot < TABLE_PAGES:
            prefetch(arrays.leaf, first + slot + _AHEAD)
            ptes = load_line(arrays.leaf, first + slot)
            words = usual_word(ptes)
            doubt = doubt | unusual(ptes, walk)
            if by_page:
                request = load_line(arrays.hmm_pfns, page + slot)
            stops = stops | may_stop(words, request, walk)
            store_line(kept, place + slot, words)
            slot = slot + LINE
        exact = any_of(doubt, UNUSUAL)
    if exact:
        stops = spread(ZERO)
        slot = ZERO
        while slot < TABLE_PAGES:
            words = any_word(load_line(arrays.leaf, first + slot), walk)
            if by_page:
                request = load_line(arrays.hmm_pfns, page + slot)
            stops = stops | may_stop(words, request, walk)
            store_line(kept, place + slot, words)
            slot = slot + LINE
    write_owned(row, ZERO, TABLE_PAGES, walk, arrays, kept, place)
    return any_of(stops, STOPS), by_page


def write_owned(row, slot, count, walk, arrays, words, at):
    """Write the words of device-private pages, which were written as if nobody owned them, once more."""
    if arrays.owners.shape[0] > 0:
        owned = spread(ZERO)
        first = (row << _TABLE_SHIFT) + slot
        i = ZERO
        while i + LINE <= count:
            owned = owned | may_be_owned(load_line(arrays.leaf, first + i), walk)
            i = i + LINE
        if any_of(owned, OWNED):
            for k in range(i):
                if may_be_device_private(arrays.leaf[row, slot + k], walk):
                    words[at + k] = pte_word(arrays.leaf[row, slot + k], walk, arrays.owners)


def write_kept(kept, place, count, hmm_pfns, page, past_caches):
    """Copy ``count`` words that were kept from ``kept[place]`` on to ``hmm_pfns[page]``."""
    i = ZERO
    if past_caches:
        if is_odd(hmm_pfns, page) == ONE and count > ZERO:
            hmm_pfns[page] = kept[place]
            i = ONE
        while i + LINE <= count:
            store_line_past_caches(hmm_pfns, page + i, load_line(kept, place + i))
            i = i + LINE
    while i < count:
        hmm_pfns[page + i] = kept[place + i]
        i = i + ONE


def word_line(ptes, room, unplain, walk):
    """Return the words of eight PTEs, as if nobody owned their pages: plain ones, usual ones, or any."""
    words = plain_word(ptes, PAGE_PRESENT)
    if any_of(differing(ptes, PAGE_PRESENT) + room, unplain):
        words = mixed_line(ptes, walk)
    return words


def mixed_line(ptes, walk):
    """Return the same, where plain pages are the exception."""
    words = usual_word(ptes)
    if any_of(unusual(ptes, walk), UNUSUAL):
        words = any_word(ptes, walk)
    return words


def write_leaf(row, slot, count, page, walk, arrays, past_caches):
    """Write the words of ``count`` PTEs from ``slot`` on to ``hmm_pfns[page]`` and after."""
    first = (row << _TABLE_SHIFT) + slot
    begin = ZERO
    if past_caches and is_odd(arrays.hmm_pfns, page) == ONE and count > ZERO:
        arrays.hmm_pfns[page] = pte_word(arrays.leaf[row, slot], walk, arrays.owners)
        begin = ONE
    lines = (count - begin) // LINE
    end = begin + lines * LINE
    if lines > ZERO:
        room = room_above(walk)
        unplain = doubts(PAGE_PRESENT)
        i = begin
        step = LINE
        apart = (address_of(arrays.hmm_pfns, page) - address_of(arrays.leaf, first)) & _IN_PAGE
        if ZERO < apart and apart < _UNDER_WAY:
            i = end - LINE
            step = ZERO - LINE
        ahead = step * (_AHEAD // LINE)
        mixed = any_of(differing(load_line(arrays.leaf, first + begin), PAGE_PRESENT) + room, unplain)
        if walk.shadow_stack != ZERO:
            for _ in range(lines):
                words = any_word(load_line(arrays.leaf, first + i), walk)
                if past_caches:
                    store_line_past_caches(arrays.hmm_pfns, page + i, words)
                else:
                    store_line(arrays.hmm_pfns, page + i, words)
                i = i + step
        elif past_caches:
            if mixed:
                for _ in range(lines):
                    prefetch(arrays.leaf, first + i + ahead)
                    words = mixed_line(load_line(arrays.leaf, first + i), walk)
                    store_line_past_caches(arrays.hmm_pfns, page + i, words)
                    i = i + step
            else:
                for _ in range(lines):
                    prefetch(arrays.leaf, first + i + ahead)
                    words = word_line(load_line(arrays.leaf, first + i), room, unplain, walk)
                    store_line_past_caches(arrays.hmm_pfns, page + i, words)
                    i = i + step
        else:
            for _ in range(lines):
                words = word_line(load_line(arrays.leaf, first + i), room, unplain, walk)
                store_line(arrays.hmm_pfns, page + i, words)
                i = i + step
        write_owned(row, slot + begin, end - begin, walk, arrays, arrays.hmm_pfns, page + begin)
    for k in range(end, count):
        arrays.hmm_pfns[page + k] = pte_word(arrays.leaf[row, slot + k], walk, arrays.owners)


def write_fill(word, step, count, page, hmm_pfns, past_caches):
    """Write ``count`` words that begin with ``word`` and grow by ``step``."""
    i = ZERO
    if past_caches:
        if is_odd(hmm_pfns, page) == ONE and count > ZERO:
            hmm_pfns[page] = word
            i = ONE
        line = counted(word + i * step, step)
        while i + LINE <= count:
            store_line_past_caches(hmm_pfns, page + i, line)
            line = line + step * LINE
            i = i + LINE
    for k in range(i, count):
        hmm_pfns[page + k] = word + k * step


def write_words(first, past, last, walk, arrays, past_caches):
    """Write the words of ``[first, past)``, none of whose pages needs a fault.

    Return the start of the first extent at which the walk stops all the same, whatever is asked, or
    ``NO_STOP``.
    """
    va = first
    extent = extent_at(va, last, walk, arrays)
    while va < past:
        end = min(extent.end, past)
        after = extent
        if end < past:  # found while the words of this one are written, not after
            after = extent_at(end, last, walk, arrays)
        page = (va - walk.start) >> PAGE_SHIFT
        count = (end - va) >> PAGE_SHIFT
        slot = (va >> PAGE_SHIFT) & INDEX_MASK
        word = extent.word + ((va - extent.start) >> PAGE_SHIFT) * extent.step
        if extent.kind == KIND_FORCED:
            return extent.start
        keeps = keeps_input(page, count, walk, arrays)
        if extent.kind == KIND_LEAF:
            if keeps:
                write_leaf_beside_input(extent.row, slot, count, page, walk, arrays)
            else:
                write_leaf(extent.row, slot, count, page, walk, arrays, past_caches)
        elif keeps:
            for i in range(count):
                kept = arrays.hmm_pfns[page + i] & walk.hmm_pfn_sticky
                arrays.hmm_pfns[page + i] = kept | (word + i * extent.step)
        else:
            write_fill(word, extent.step, count, page, arrays.hmm_pfns, past_caches)
        va = end
        extent = after
    return NO_STOP


# As for shared functions: see gpuhmm.shared.register.
is_odd = njit(is_odd, _nrt=False)
write_owned = njit(write_owned, _nrt=False)
keep_table = njit(keep_table, _nrt=False)
write_kept = njit(write_kept, _nrt=False)
mixed_line = njit(mixed_line, _nrt=False, forceinline=True)
word_line = njit(word_line, _nrt=False, forceinline=True)
write_leaf = njit(write_leaf, _nrt=False)
write_fill = njit(write_fill, _nrt=False)
write_words = njit(write_words, _nrt=False)
