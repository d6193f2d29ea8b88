"""The kernels that plan a walk, resolve slots page by page, and describe where it stops."""

from __future__ import annotations

from numba import cuda

from gpuhmm.hmm.walk.arrays import Arrays
from gpuhmm.hmm.walk.constants import asks_by_page, may_fault, unpack
from gpuhmm.hmm.walk.extent import KIND_FILL_FIRST, KIND_FORCED, KIND_LEAF, extent_at
from gpuhmm.hmm.walk.pte import ACTION_NONE, pte_stop, pte_word
from gpuhmm.hmm.walk.span import NO_STOP
from gpuhmm.hmm.words import hmm_pte_need_fault
from gpuhmm.kernels.cuda_stream import (
    DONE,
    PAGE_BY_PAGE,
    PLAN_CPU_FLAGS,
    PLAN_KIND,
    PLAN_ROW,
    PLAN_START,
    PLAN_STEP,
    PLAN_WORD,
    STREAM_ASKED_FILL,
    STREAM_FILL,
    STREAM_LEAF,
    STREAM_NONE,
)
from gpuhmm.kernels.device_tables import THREADS
from gpuhmm.mm.x86 import INDEX_MASK, ONE, PAGE_SHIFT, PMD_SHIFT, U64, ZERO
from gpuhmm.shared import register, shared

#: A slot with more than one extent: its pages look their extents up one by one.
KIND_MIXED = U64(4)

#: Places of a stop's description: ACTION_*, HMM_NEED_*, end, VMA, level.  This is where the needs add up.
_NEED = U64(1)

_THREADS = U64(THREADS)


@shared("void(Array1, uint64, uint64, uint64, uint64, uint64)")
def write_description(description, action, need, end, vma, level):
    """Store a stop's description."""
    description[U64(0)] = action
    description[_NEED] = need
    description[U64(2)] = end
    description[U64(3)] = vma
    description[U64(4)] = level


def plan(
    first,
    past,
    constants,
    vmas,
    owners,
    upper,
    child,
    leaf,
    hmm_pfns,
    may_stream,
    plans,
    streams,
    marks,
    stop,
):
    """Write the extent of each 2 MiB slot of ``[first, past)`` to ``plans``; one thread a slot.

    ``streams`` says how the slot is streamed, ``marks`` whether it is resolved page by page.
    """
    walk = unpack(constants)
    arrays = Arrays(vmas, owners, upper, child, leaf, hmm_pfns)
    slot = U64(cuda.grid(1))
    va = ((first >> PMD_SHIFT) + slot) << PMD_SHIFT
    end = va + (ONE << PMD_SHIFT)
    whole = may_stream != ZERO and va >= first and end <= past
    if va < first:
        va = first
    if end > past:
        end = past
    if va < end:
        extent = extent_at(va, first, walk, arrays)
        streamed = STREAM_NONE
        kind = extent.kind
        if extent.end < end:
            kind = KIND_MIXED
        elif kind == KIND_FORCED:
            cuda.atomic.min(stop, ZERO, extent.start)
        elif whole:
            streamed = streaming_of(extent, walk, hmm_pfns)
        plans[slot, PLAN_KIND] = kind
        plans[slot, PLAN_ROW] = extent.row
        plans[slot, PLAN_WORD] = extent.word + ((va - extent.start) >> PAGE_SHIFT) * extent.step
        plans[slot, PLAN_STEP] = extent.step
        plans[slot, PLAN_CPU_FLAGS] = extent.cpu_flags
        plans[slot, PLAN_START] = extent.start
        streams[slot] = streamed
        marks[slot] = DONE
        if streamed == STREAM_NONE:
            marks[slot] = PAGE_BY_PAGE


@shared("uint64(Extent, Walk, Array1)")
def streaming_of(extent, walk, hmm_pfns):
    """Return how a slot that lies in one extent is streamed; not, if the walk stops in it for certain."""
    if extent.kind == KIND_LEAF:
        return STREAM_LEAF
    request = ZERO
    if asks_by_page(walk):
        if extent.kind != KIND_FILL_FIRST:
            return STREAM_ASKED_FILL
        request = hmm_pfns[(extent.start - walk.start) >> PAGE_SHIFT]
    if hmm_pte_need_fault(request, extent.cpu_flags, walk.default_flags, walk.pfn_flags_mask) != ZERO:
        return STREAM_NONE
    return STREAM_FILL


def resolve(
    first, past, slots, constants, vmas, owners, upper, child, leaf, hmm_pfns, plans, marks, words, stop
):
    """Write the words of every marked slot of ``[first, past)`` and lower ``stop`` to the first that stops.

    A block takes one slot after the other, its threads side by side over the pages.
    """
    walk = unpack(constants)
    arrays = Arrays(vmas, owners, upper, child, leaf, hmm_pfns)
    slot = U64(cuda.blockIdx.x)
    while slot < slots:
        if marks[slot] != DONE:
            resolve_slot(slot, first, past, walk, arrays, plans, words, stop)
        slot = slot + U64(cuda.gridDim.x)


def resolve_slot(slot, first, past, walk, arrays, plans, words, stop):
    """Write the words of one slot and lower ``stop`` to the first page of it that stops the walk."""
    base = ((first >> PMD_SHIFT) + slot) << PMD_SHIFT
    kind = plans[slot, PLAN_KIND]
    row = plans[slot, PLAN_ROW]
    word = plans[slot, PLAN_WORD]
    step = plans[slot, PLAN_STEP]
    cpu_flags = plans[slot, PLAN_CPU_FLAGS]
    start = plans[slot, PLAN_START]
    word_va = base
    if base < first:
        word_va = first
    index = U64(cuda.threadIdx.x)
    while index <= INDEX_MASK:
        va = base + (index << PAGE_SHIFT)
        index = index + _THREADS
        if va >= first and va < past:
            page = (va - walk.start) >> PAGE_SHIFT
            at_kind = kind
            if kind == KIND_MIXED:
                extent = extent_at(va, first, walk, arrays)
                at_kind = extent.kind
                row = extent.row
                word = extent.word
                step = extent.step
                cpu_flags = extent.cpu_flags
                start = extent.start
                word_va = start
            request = ZERO
            if asks_by_page(walk):
                asking = page
                if at_kind == KIND_FILL_FIRST:
                    asking = (start - walk.start) >> PAGE_SHIFT
                request = arrays.hmm_pfns[asking]
            if at_kind == KIND_LEAF:
                pte = arrays.leaf[row, (va >> PAGE_SHIFT) & INDEX_MASK]
                words[page] = pte_word(pte, walk, arrays.owners)
                if may_fault(walk) and pte_stop(pte, request, walk, arrays.owners)[0] != ACTION_NONE:
                    cuda.atomic.min(stop, ZERO, va)
            elif at_kind == KIND_FORCED:
                cuda.atomic.min(stop, ZERO, start)
            else:
                words[page] = word + ((va - word_va) >> PAGE_SHIFT) * step
                need = hmm_pte_need_fault(request, cpu_flags, walk.default_flags, walk.pfn_flags_mask)
                if need != ZERO:
                    cuda.atomic.min(stop, ZERO, start)


def describe(constants, vmas, owners, upper, child, leaf, hmm_pfns, stop, description):
    """Describe the first stop as :func:`gpuhmm.hmm.walk.span.describe_stop` does; one block.

    The need of an extent is the OR over its pages, which the threads share out.
    """
    walk = unpack(constants)
    arrays = Arrays(vmas, owners, upper, child, leaf, hmm_pfns)
    va = stop[ZERO]
    index = U64(cuda.threadIdx.x)
    if va != NO_STOP:
        extent = extent_at(va, va, walk, arrays)
        page = (va - walk.start) >> PAGE_SHIFT
        if extent.kind == KIND_LEAF or extent.kind == KIND_FORCED:
            if index == ZERO:
                action = extent.action
                need = ZERO
                if extent.kind == KIND_LEAF:
                    request = ZERO
                    if asks_by_page(walk):
                        request = hmm_pfns[page]
                    pte = leaf[extent.row, (va >> PAGE_SHIFT) & INDEX_MASK]
                    action, need = pte_stop(pte, request, walk, owners)
                write_description(description, action, need, extent.end, extent.vma, extent.row)
        else:
            if index == ZERO:
                write_description(description, extent.action, ZERO, extent.end, extent.vma, ONE)
            cuda.syncthreads()
            count = (extent.end - va) >> PAGE_SHIFT
            if extent.kind == KIND_FILL_FIRST or not asks_by_page(walk):
                count = ONE
            need = ZERO
            while index < count:
                request = ZERO
                if asks_by_page(walk):
                    request = hmm_pfns[page + index]
                need = need | hmm_pte_need_fault(
                    request, extent.cpu_flags, walk.default_flags, walk.pfn_flags_mask
                )
                index = index + _THREADS
            if need != ZERO:
                cuda.atomic.or_(description, _NEED, need)


def merge(sticky, words, hmm_pfns):
    """Store the words in the caller's array beside the bits of ``sticky`` there; one thread a page."""
    page = U64(cuda.grid(1))
    if page < U64(words.shape[0]):
        hmm_pfns[page] = (hmm_pfns[page] & sticky) | words[page]


resolve_slot = cuda.jit(device=True, inline="always")(resolve_slot)

register()
plan_kernel = cuda.jit(plan)
resolve_kernel = cuda.jit(resolve)
describe_kernel = cuda.jit(describe)
merge_kernel = cuda.jit(merge)

#: Every kernel with the numba types of its arguments, for the compile gate.
KERNELS = {
    plan_kernel: (
        "uint64, uint64, Array1, Array2, Array2, Array2, ChildArray, Array2, Array1, uint64, Array2, Array1, "
        "Array1, Array1"
    ),
    resolve_kernel: (
        "uint64, uint64, uint64, Array1, Array2, Array2, Array2, ChildArray, Array2, Array1, Array2, Array1, "
        "Array1, Array1"
    ),
    describe_kernel: "Array1, Array2, Array2, Array2, ChildArray, Array2, Array1, Array1, Array1",
    merge_kernel: "uint64, Array1, Array1",
}
