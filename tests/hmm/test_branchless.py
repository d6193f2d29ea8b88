"""Words without a branch against the decisions that they restate, for one PTE and for eight at once."""

import numpy as np
import pytest
from numba import njit

from gpuhmm.hmm.walk import branchless
from gpuhmm.hmm.walk.constants import Walk
from gpuhmm.hmm.walk.pte import may_be_device_private, ownerless_word, pte_may_stop
from gpuhmm.kernels.lanes import LINE, any_of, counted, load_line, store_line
from gpuhmm.mm import x86
from gpuhmm.mm.profile import PROFILES
from gpuhmm.shared import register

register()

U64 = np.uint64
ZERO_PFN = 0x1A5F
PRESENT, SPECIAL = x86.PAGE_PRESENT, x86.PAGE_SPECIAL
READ, WRITE = U64(1 << 63), U64(1 << 62)


def walk_of(kernel, *, highest=0x4F_FFFF, default_flags=0, pfn_flags_mask=0, shadow_stack=False):
    profile = PROFILES[kernel]
    fields = dict.fromkeys(Walk._fields, 0) | {
        "default_flags": default_flags,
        "pfn_flags_mask": pfn_flags_mask,
        "zero_pfn": ZERO_PFN,
        "highest_memmap_pfn": highest,
        "max_swapfiles": profile.max_swapfiles,
        "device_write": profile.swp_device_write,
        "device_read": profile.swp_device_read,
        "pte_marker": profile.swp_pte_marker,
        "page_devmap": profile.page_devmap,
        "shadow_stack": int(x86.PAGE_DIRTY) if shadow_stack else 0,
    }
    return Walk(**{name: U64(value) for name, value in fields.items()})


def ptes(highest):
    """Return every combination of the low 12 bits, of PFNs on both sides of each limit, and of high bits."""
    pfns = [0, 1, ZERO_PFN - 1, ZERO_PFN, ZERO_PFN + 1, highest - 1, highest, highest + 1, (1 << 40) - 1]
    pfns += [pfn ^ ((1 << 40) - 1) for pfn in (ZERO_PFN, highest, highest + 1)]  # inverted, as P is 0
    pfns = [pfn for pfn in pfns if 0 <= pfn < 1 << 40]
    high = [0, 1 << 57, 1 << 58, 1 << 63, 1 << 52, 0xFFF << 52, *(kind << 59 for kind in range(32))]
    low = np.arange(4096, dtype=U64)
    rest = np.array([pfn << 12 | bits for pfn in pfns for bits in high], dtype=U64)
    return (rest[:, None] | low[None, :]).reshape(-1)


@njit
def wrong_words(entries, walk, granted, room):
    """Count the PTEs whose word one of the functions gets wrong, and those that it may take for its own."""
    wrong = plain = usual = 0
    for pte in entries:
        word = ownerless_word(pte, walk)
        wrong += branchless.any_word(pte, walk) != word
        if walk.shadow_stack != U64(0):
            continue
        doubt = (branchless.differing(pte, granted) + room) & branchless.doubts(granted)
        if doubt == U64(0):
            plain += 1
            wrong += branchless.plain_word(pte, granted) != word
            wrong += (word & WRITE) == U64(0) and (granted & x86.PAGE_RW) != U64(0)
        if (branchless.unusual(pte, walk) & branchless.UNUSUAL) == U64(0):
            usual += 1
            wrong += branchless.usual_word(pte) != word
        owned = (branchless.may_be_owned(pte, walk) & branchless.OWNED) != U64(0)
        wrong += owned != may_be_device_private(pte, walk)
    return wrong, plain, usual


@pytest.mark.parametrize("kernel", PROFILES)
@pytest.mark.parametrize("highest", [0x4F_FFFF, (1 << 40) - 1, 0])
def test_every_word_is_that_of_the_decision(kernel, highest):
    walk = walk_of(kernel, highest=highest)
    entries = ptes(highest)
    room = branchless.room_above(walk)
    for granted in (PRESENT, PRESENT | x86.PAGE_RW):
        wrong, plain, usual = wrong_words(entries, walk, granted, room)
        assert wrong == 0
        # Plain are PTEs with the bits of granted and without SPECIAL, whatever the others are.
        pfn = (entries & x86.PTE_PFN_MASK) >> U64(12)
        expected = ((entries & (granted | SPECIAL)) == granted) & (pfn <= U64(highest))
        assert plain == expected.sum() > 0
        # Usual are these with any RW, the read-only zero page, and what is neither present nor PROTNONE.
        there = (entries & PRESENT) != U64(0)
        fine = ((entries & SPECIAL) == U64(0)) & (pfn <= U64(highest))
        fine |= (pfn == U64(ZERO_PFN)) & ((entries & (SPECIAL | x86.PAGE_RW)) == SPECIAL)
        absent = (entries & (PRESENT | x86.PAGE_PROTNONE)) == U64(0)
        assert usual == ((there & fine) | absent).sum()


@pytest.mark.parametrize("kernel", PROFILES)
def test_words_where_shadow_stacks_are_writable(kernel):
    walk = walk_of(kernel, shadow_stack=True)
    assert wrong_words(ptes(0x4F_FFFF), walk, PRESENT, branchless.room_above(walk))[0] == 0


@njit
def wrong_stops(entries, requests, walk):
    wrong = 0
    for pte in entries:
        word = branchless.any_word(pte, walk)
        for request in requests:
            stops = (branchless.may_stop(word, request, walk) & branchless.STOPS) != U64(0)
            wrong += stops != pte_may_stop(pte, request, walk)
    return wrong


@pytest.mark.parametrize("default_flags", range(4))
@pytest.mark.parametrize("pfn_flags_mask", range(4))
def test_every_stop_is_that_of_the_decision(default_flags, pfn_flags_mask):
    walk = walk_of("v6.1", default_flags=default_flags << 62, pfn_flags_mask=pfn_flags_mask << 62)
    requests = (np.arange(8, dtype=U64) << U64(61)) | np.arange(8, dtype=U64)
    assert wrong_stops(ptes(0x4F_FFFF)[::7], requests, walk) == 0


@njit
def lanes_of(entries, walk, granted, room, words):
    """Write what eight lanes give for each function, one row a function; return where lanes are in doubt."""
    unplain = 0
    unusual = 0
    i = U64(0)
    while i < U64(entries.size):
        line = load_line(entries, i)
        store_line(words[0], i, branchless.any_word(line, walk))
        store_line(words[1], i, branchless.plain_word(line, granted))
        store_line(words[2], i, branchless.usual_word(line))
        store_line(words[3], i, branchless.unusual(line, walk))
        store_line(words[4], i, branchless.may_be_owned(line, walk))
        store_line(words[5], i, branchless.may_stop(line, counted(i, WRITE), walk))
        store_line(words[6], i, branchless.differing(line, granted) + room)
        unplain += any_of(branchless.differing(line, granted) + room, branchless.doubts(granted))
        unusual += any_of(branchless.unusual(line, walk), branchless.UNUSUAL)
        i = i + LINE
    return unplain, unusual


@njit
def one_by_one(entries, walk, granted, room, words):
    for i in range(entries.size):
        pte = entries[i]
        line = U64(i) // LINE * LINE
        words[0, i] = branchless.any_word(pte, walk)
        words[1, i] = branchless.plain_word(pte, granted)
        words[2, i] = branchless.usual_word(pte)
        words[3, i] = branchless.unusual(pte, walk)
        words[4, i] = branchless.may_be_owned(pte, walk)
        words[5, i] = branchless.may_stop(pte, line + (U64(i) - line) * WRITE, walk)
        words[6, i] = branchless.differing(pte, granted) + room


def test_eight_lanes_give_what_eight_calls_give():
    walk = walk_of("v6.1", default_flags=1 << 63, pfn_flags_mask=3 << 62)
    entries = np.random.default_rng(5).permutation(ptes(0x4F_FFFF))[: 1 << 16]
    entries[:800] = (entries[:800] & x86.PTE_PFN_MASK & U64(0xFFFF_FFFF)) | PRESENT
    room = branchless.room_above(walk)
    of_lanes, of_calls = np.zeros((2, 7, len(entries)), dtype=U64)
    counts = lanes_of(entries, walk, PRESENT, room, of_lanes)
    one_by_one(entries, walk, PRESENT, room, of_calls)
    assert np.array_equal(of_lanes, of_calls)
    lines = of_calls.reshape(7, -1, 8)
    assert counts[0] == ((lines[6] & branchless.doubts(PRESENT)) != 0).any(axis=1).sum() < len(entries) // 8
    assert counts[1] == ((lines[3] & branchless.UNUSUAL) != 0).any(axis=1).sum()
