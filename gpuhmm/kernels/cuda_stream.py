"""The streaming kernels: whole 2 MiB slots of plain pages or of one fill, 16 bytes an access.

They write every word as if its page were plain, and mark the slots in which one is not, or in which a
page stops the walk.  Marked slots are resolved again by :func:`gpuhmm.kernels.cuda.resolve`.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from gpuhmm.hmm.walk.leaf import plain_word
from gpuhmm.hmm.words import (
    hmm_pte_need_fault,
)
from gpuhmm.kernels.device_tables import THREADS
from gpuhmm.kernels.word_pairs import load_pair, store_pair
from gpuhmm.mm.x86 import (
    PAGE_SHIFT,
    PAGE_SPECIAL,
    PTE_PFN_MASK,
    U64,
    ZERO,
)
from gpuhmm.shared import register, shared

#: Columns of a plan, one row a slot.
PLAN_COLUMNS = 6
PLAN_KIND = U64(0)
PLAN_ROW = U64(1)
PLAN_WORD = U64(2)
PLAN_STEP = U64(3)
PLAN_CPU_FLAGS = U64(4)
PLAN_START = U64(5)

#: What a slot's marks say: nothing to do any more, to be resolved page by page.
DONE = U64(0)
PAGE_BY_PAGE = U64(1)

#: How a slot is streamed: not at all, from a leaf table, as a fill, as a fill that looks at requests.
STREAM_NONE = U64(0)
STREAM_LEAF = U64(1)
STREAM_FILL = U64(2)
STREAM_ASKED_FILL = U64(3)

_THREADS = U64(THREADS)
_PAIRS = U64(256)
_TABLE_SHIFT = U64(9)
_TABLE_PAGES = U64(512)


@shared("boolean(uint64, uint64, uint64)")
def is_plain(pte: np.uint64, granted: np.uint64, highest_memmap_pfn: np.uint64) -> bool | np.bool_:
    """True for a present PTE that grants what is asked and that a device may map."""
    return (pte & (granted | PAGE_SPECIAL)) == granted and (
        (pte & PTE_PFN_MASK) >> PAGE_SHIFT
    ) <= highest_memmap_pfn


def stream(second, granted, highest_memmap_pfn, plans, streams, entries, words, marks):
    """Write the words of every slot that ``streams`` names, all pages making the same request.

    One block a slot; ``second`` is the page of the range at which slot 1 begins: slot 0 may begin below
    the range.  ``entries`` are the leaf tables one after the other.
    """
    slot = U64(cuda.blockIdx.x)
    kind = streams[slot]
    if kind == STREAM_NONE:
        return
    pair = U64(cuda.threadIdx.x)
    page = second + (slot << _TABLE_SHIFT) - _TABLE_PAGES
    if kind == STREAM_LEAF:
        row = plans[slot, PLAN_ROW] << _TABLE_SHIFT
        while pair < _PAIRS:
            at = pair + pair
            one, two = load_pair(entries, row + at)
            store_pair(words, page + at, plain_word(one), plain_word(two))
            if not (
                is_plain(one, granted, highest_memmap_pfn) and is_plain(two, granted, highest_memmap_pfn)
            ):
                marks[slot] = PAGE_BY_PAGE
            pair = pair + _THREADS
    else:
        word = plans[slot, PLAN_WORD]
        step = plans[slot, PLAN_STEP]
        while pair < _PAIRS:
            at = pair + pair
            first = word + at * step
            store_pair(words, page + at, first, first + step)
            pair = pair + _THREADS


def stream_asked(
    second,
    default_flags,
    pfn_flags_mask,
    granted,
    highest_memmap_pfn,
    plans,
    streams,
    entries,
    hmm_pfns,
    words,
    marks,
):
    """Write the words of every slot that ``streams`` names, each page making its own request.

    ``granted`` are the bits of every plain page.
    """
    slot = U64(cuda.blockIdx.x)
    kind = streams[slot]
    if kind == STREAM_NONE:
        return
    pair = U64(cuda.threadIdx.x)
    page = second + (slot << _TABLE_SHIFT) - _TABLE_PAGES
    row = plans[slot, PLAN_ROW] << _TABLE_SHIFT
    word = plans[slot, PLAN_WORD]
    step = plans[slot, PLAN_STEP]
    cpu_flags = plans[slot, PLAN_CPU_FLAGS]
    while pair < _PAIRS:
        at = pair + pair
        word_one = word + at * step
        word_two = word_one + step
        flags_one = cpu_flags
        flags_two = cpu_flags
        if kind == STREAM_LEAF:
            one, two = load_pair(entries, row + at)
            word_one = plain_word(one)
            word_two = plain_word(two)
            flags_one = word_one
            flags_two = word_two
            if not (
                is_plain(one, granted, highest_memmap_pfn) and is_plain(two, granted, highest_memmap_pfn)
            ):
                marks[slot] = PAGE_BY_PAGE
        if kind != STREAM_FILL:
            asks_one, asks_two = load_pair(hmm_pfns, page + at)
            need = hmm_pte_need_fault(asks_one, flags_one, default_flags, pfn_flags_mask)
            need = need | hmm_pte_need_fault(asks_two, flags_two, default_flags, pfn_flags_mask)
            if need != ZERO:
                marks[slot] = PAGE_BY_PAGE
        store_pair(words, page + at, word_one, word_two)
        pair = pair + _THREADS


register()
stream_kernel = cuda.jit(stream)
stream_asked_kernel = cuda.jit(stream_asked)

#: Every kernel with the numba types of its arguments, for the compile gate.
KERNELS = {
    stream_kernel: "uint64, uint64, uint64, Array2, Array1, Array1, Array1, Array1",
    stream_asked_kernel: (
        "uint64, uint64, uint64, uint64, uint64, Array2, Array1, Array1, Array1, Array1, Array1"
    ),
}
