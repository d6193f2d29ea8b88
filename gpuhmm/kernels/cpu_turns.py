"""Turns of threads over the slots of a range: what each looks at, keeps and writes.

Where the walk can stop, a slot is written only once no slot below it can stop any more, so that inputs above
a stop are never touched; until then the words of its table are kept.
"""

from __future__ import annotations

from numba import njit

from gpuhmm.hmm.walk.arrays import Arrays
from gpuhmm.hmm.walk.constants import asks_by_page, unpack
from gpuhmm.hmm.walk.extent import KIND_FORCED, KIND_LEAF, extent_at
from gpuhmm.hmm.walk.leaf import keeps_input
from gpuhmm.hmm.walk.span import NO_STOP, find_stop, need_of_pages
from gpuhmm.kernels.atomics import load_acquire, store_release
from gpuhmm.kernels.cpu_tables import TABLE_PAGES, keep_table, write_fill, write_kept, write_words
from gpuhmm.kernels.lanes import address_of, finish_stores
from gpuhmm.mm.x86 import ONE, PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT, PMD_SIZE, U64, ZERO
from gpuhmm.shared import register

register()

#: Words between the counts of two threads, so that each has a line of the cache to itself.
APART = U64(16)
_TWO = U64(2)
_WORD_SHIFT = U64(3)
#: Tables whose words a thread keeps: 256 KiB of the second-level cache.
KEPT_TABLES = U64(64)
#: The step of what was kept word by word: fills count up by 0 or 1.  Where requests were read, their lines
#: are in the caches: to store past these would drive them out first.
_TABLE = NO_STOP
_TABLE_OF_REQUESTS = NO_STOP - ONE


def nr_slots(first, past):
    """Return the number of 2 MiB slots that ``[first, past)`` lies in."""
    return ((past - ONE) >> PMD_SHIFT) - (first >> PMD_SHIFT) + ONE


def _nth_slot(nth, thread, threads, run):
    """Return the number of a thread's ``nth`` slot: threads take turns of ``run`` slots."""
    return (nth // run * threads + thread) * run + nth % run


def _next_slot(slot, turn_end, threads, run):
    """Return the slot that a thread comes to after ``slot``, and where the turn of that one ends."""
    slot = slot + ONE
    if slot == turn_end:
        slot = slot + (threads - ONE) * run
        turn_end = slot + run
    return slot, turn_end


def _slot(slot, first, past):
    """Return the part of ``[first, past)`` that lies in its slot of that number."""
    low = ((first >> PMD_SHIFT) + slot) << PMD_SHIFT
    return max(low, first), min(low + PMD_SIZE, past)


def _begin_of_kept(kept, first, start, hmm_pfns):
    """Return where in ``kept`` tables begin so that they lie in their pages as their words in ``hmm_pfns``.

    To find the stores that a load depends on a processor compares the place in the page only: a load that
    follows stores to the same place of another page would wait for them.
    """
    page = ((((first >> PMD_SHIFT) + ONE) << PMD_SHIFT) - start) >> PAGE_SHIFT
    apart = address_of(hmm_pfns, page) - address_of(kept, ZERO)
    return (apart & (PAGE_SIZE - ONE)) >> _WORD_SHIFT


def _keep(extent, low, high, walk, arrays, kept, place, steps, nth):
    """Keep the words of slot ``[low, high)`` if they are one table or one fill; ``steps[nth]`` says which.

    Return whether they are kept, and whether it must still be seen if a page of the slot stops the walk.
    """
    if extent.kind == KIND_FORCED or extent.start > low or extent.end < high:
        return False, True
    page = (low - walk.start) >> PAGE_SHIFT
    if keeps_input(page, (high - low) >> PAGE_SHIFT, walk, arrays):
        return False, True
    if extent.kind == KIND_LEAF:
        if high - low != PMD_SIZE:
            return False, True
        doubtful, has_read = keep_table(extent.row, page, walk, arrays, kept, place)
        steps[nth] = _TABLE_OF_REQUESTS if has_read else _TABLE
        return True, doubtful
    if asks_by_page(walk) or need_of_pages(extent, low, high, walk, arrays) != ZERO:
        return False, True
    steps[nth] = extent.step
    kept[place] = extent.word + ((low - extent.start) >> PAGE_SHIFT) * extent.step
    return True, False


def _write_kept(low, high, walk, hmm_pfns, kept, place, step, past_caches):
    """Write what was kept of a slot."""
    page = (low - walk.start) >> PAGE_SHIFT
    count = (high - low) >> PAGE_SHIFT
    if step == _TABLE or step == _TABLE_OF_REQUESTS:
        write_kept(kept, place, count, hmm_pfns, page, past_caches and step == _TABLE)
    else:
        write_fill(kept[place], step, count, page, hmm_pfns, past_caches)


def look_and_write(
    thread,
    threads,
    run,
    first,
    past,
    past_caches,
    constants,
    vmas,
    owners,
    upper,
    child,
    leaf,
    hmm_pfns,
    seen,
    kept,
    kept_of,
    steps,
):
    """Look at the slots of one thread for a stop, and write those below which all is known.

    ``seen`` has the first slot of every thread that it has not looked at, or that stops the walk: all
    slots below the least of these may be written.  Nobody waits for that: a thread goes on looking, and
    what it could not write is left for later.  ``kept`` has room for the words of tables, ``kept_of``
    says of which of the thread's slots they are.  Return the first stop of these slots, or NO_STOP, how
    many of them are written, and the place of the next one's words in ``kept``.
    """
    walk = unpack(constants)
    arrays = Arrays(vmas, owners, upper, child, leaf, hmm_pfns)
    slots = nr_slots(first, past)
    tables = U64(kept_of.shape[0])
    begin = _begin_of_kept(kept, first, walk.start, hmm_pfns)
    looked = ZERO
    written = ZERO
    waiting = ZERO  # slots whose words are kept from ``place`` on, in a ring
    place = ZERO
    writable = ZERO
    settled = True
    stop = NO_STOP  # also if the range has fewer slots than there are threads
    slot = at = thread * run
    turn_end = turn_end_at = slot + run
    low, high = _slot(slot, first, past)
    if slot < slots:
        extent = extent_at(low, first, walk, arrays)
    else:
        extent = extent_at(first, first, walk, arrays)
    while slot < slots:
        slot, turn_end = _next_slot(slot, turn_end, threads, run)
        after = extent
        next_low, next_high = low, high
        if slot < slots:  # found while this one is looked at, not after
            next_low, next_high = _slot(slot, first, past)
            after = extent_at(next_low, first, walk, arrays)
        doubtful = True
        if waiting < tables:
            free = place + waiting
            if free >= tables:
                free = free - tables
            is_kept, doubtful = _keep(
                extent, low, high, walk, arrays, kept, begin + free * TABLE_PAGES, steps, free
            )
            if is_kept:
                kept_of[free] = looked
                waiting = waiting + ONE
        if doubtful:
            stop, cut = find_stop(low, high, first, walk, arrays)
            if stop != NO_STOP:
                break
            settled = settled and cut == ZERO
        looked = looked + ONE
        low, high, extent = next_low, next_high, after
        if settled:
            store_release(seen, thread * APART, slot)
        # To ask all threads costs more the more they are: ask once for half as many slots.
        if at >= writable and (looked - written) * _TWO >= threads:
            writable = slot
            for other in range(threads):
                writable = min(writable, load_acquire(seen, other * APART))
        # A thread that fell behind writes two for one that it looks at.
        limit = min(written + _TWO, looked)
        while at < writable and written < limit:
            from_, to = _slot(at, first, past)
            if waiting != ZERO and kept_of[place] == written:
                words = begin + place * TABLE_PAGES
                _write_kept(from_, to, walk, hmm_pfns, kept, words, steps[place], past_caches)
                place = place + ONE
                if place == tables:
                    place = ZERO
                waiting = waiting - ONE
            else:
                write_words(from_, to, first, walk, arrays, past_caches)
            written = written + ONE
            at, turn_end_at = _next_slot(at, turn_end_at, threads, run)
        if waiting == ZERO:
            place = ZERO  # so that one who is never behind needs one table of the nearest cache
    if past_caches:
        finish_stores()
    return stop, written, place


def _count_slots(thread, threads, run, slots):
    """Return how many of ``slots`` are a thread's."""
    turn = run * threads
    over = slots % turn
    return slots // turn * run + min(max(over, thread * run) - thread * run, run)


def write_rest(
    index,
    pieces,
    run,
    first,
    past,
    past_caches,
    constants,
    vmas,
    owners,
    upper,
    child,
    leaf,
    hmm_pfns,
    written,
    places,
    kept,
    kept_of,
    steps,
):
    """Write piece ``index`` of what every thread left that had ``written``; return the first stop.

    Shared out again, because one thread may have left nearly all: it was early, and another late.
    """
    walk = unpack(constants)
    arrays = Arrays(vmas, owners, upper, child, leaf, hmm_pfns)
    slots = nr_slots(first, past)
    threads = U64(written.shape[0])
    tables = U64(kept_of.shape[1])
    stop = NO_STOP
    for thread in range(threads):
        done = written[thread]
        left = max(_count_slots(thread, threads, run, slots), done) - done
        begin = _begin_of_kept(kept[thread], first, walk.start, hmm_pfns)
        begin_nth = done + left * index // pieces
        slot = _nth_slot(begin_nth, thread, threads, run)
        turn_end = slot - begin_nth % run + run
        place = (places[thread] + begin_nth - done) % tables
        for nth in range(begin_nth, done + left * (index + ONE) // pieces):
            low, high = _slot(slot, first, past)
            slot, turn_end = _next_slot(slot, turn_end, threads, run)
            if kept_of[thread, place] == nth:
                words = begin + place * TABLE_PAGES
                step = steps[thread, place]
                _write_kept(low, high, walk, hmm_pfns, kept[thread], words, step, past_caches)
            else:
                stop = write_words(low, high, first, walk, arrays, past_caches)
            place = place + ONE
            if place == tables:
                place = ZERO
            if stop != NO_STOP:
                break
        if stop != NO_STOP:
            break
    if past_caches:
        finish_stores()
    return stop


def write_piece(
    index, pieces, first, past, past_caches, constants, vmas, owners, upper, child, leaf, hmm_pfns
):
    """Write piece ``index`` of a range whose pages ask for nothing; return its first stop."""
    walk = unpack(constants)
    arrays = Arrays(vmas, owners, upper, child, leaf, hmm_pfns)
    slots = nr_slots(first, past)
    begin = slots * index // pieces
    end = slots * (index + ONE) // pieces
    stop = NO_STOP
    if begin < end:
        low, _ = _slot(begin, first, past)
        _, high = _slot(end - ONE, first, past)
        stop = write_words(low, high, first, walk, arrays, past_caches)
    if past_caches:
        finish_stores()
    return stop


# As for shared functions: see gpuhmm.shared.register.
nr_slots = njit(nr_slots, _nrt=False)
_nth_slot = njit(_nth_slot, _nrt=False)
_next_slot = njit(_next_slot, _nrt=False)
_slot = njit(_slot, _nrt=False)
_count_slots = njit(_count_slots, _nrt=False)
_begin_of_kept = njit(_begin_of_kept, _nrt=False)
_keep = njit(_keep, _nrt=False)
_write_kept = njit(_write_kept, _nrt=False)
write_piece = njit(write_piece, _nrt=False)
look_and_write = njit(look_and_write, _nrt=False)
write_rest = njit(write_rest, _nrt=False)
