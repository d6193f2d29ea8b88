"""The CUDA back end: plan and resolve on the device, one block for each 2 MiB slot of the range.

Words go to a second buffer, so that inputs survive a stop.  Tables stay on the device between calls;
only those that changed are sent again (:mod:`gpuhmm.kernels.device_tables`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda

from gpuhmm.hmm import hmm_pte_need_fault
from gpuhmm.kernels.device_tables import THREADS, device_tables
from gpuhmm.settle import Stop, settle
from gpuhmm.shared import register, shared
from gpuhmm.walk.constants import Walk, asks_by_page, may_fault, unpack, walk_constants
from gpuhmm.walk.extent import KIND_FILL_FIRST, KIND_FORCED, KIND_LEAF, extent_at
from gpuhmm.walk.pte import ACTION_NONE, pte_stop, pte_word
from gpuhmm.walk.span import NO_STOP
from gpuhmm.x86 import ALL_ONES, INDEX_MASK, ONE, PAGE_SHIFT, PMD_SHIFT, U64, ZERO

if TYPE_CHECKING:
    from gpuhmm.ranges import HmmRange

#: Columns of a plan, one row a slot: what :class:`gpuhmm.walk.extent.Extent` holds, or MIXED.
PLAN_COLUMNS = 6
_KIND = U64(0)
_ROW = U64(1)
_WORD = U64(2)
_STEP = U64(3)
_CPU_FLAGS = U64(4)
_START = U64(5)

#: A slot with more than one extent: its pages look their extents up one by one.
KIND_MIXED = U64(4)

#: Places of a stop's description: ACTION_*, HMM_NEED_*, end, VMA, level.
DESCRIPTION = 5
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


def plan(first, past, constants, vmas, upper, child, plans, stop):
    """Write the extent of each 2 MiB slot of ``[first, past)`` to ``plans``; one thread a slot."""
    walk = unpack(constants)
    slot = U64(cuda.grid(1))
    va = ((first >> PMD_SHIFT) + slot) << PMD_SHIFT
    end = va + (ONE << PMD_SHIFT)
    if va < first:
        va = first
    if end > past:
        end = past
    if va < end:
        extent = extent_at(va, first, walk, vmas, upper, child)
        plans[slot, _KIND] = extent.kind
        if extent.end < end:
            plans[slot, _KIND] = KIND_MIXED
        elif extent.kind == KIND_FORCED:
            cuda.atomic.min(stop, ZERO, extent.start)
        plans[slot, _ROW] = extent.row
        plans[slot, _WORD] = extent.word
        plans[slot, _STEP] = extent.step
        plans[slot, _CPU_FLAGS] = extent.cpu_flags
        plans[slot, _START] = extent.start


def resolve(first, past, constants, vmas, owners, upper, child, leaf, plans, hmm_pfns, words, stop):
    """Write the word of every page of ``[first, past)`` and lower ``stop`` to the first that stops.

    One block a slot, its threads side by side over the pages.
    """
    walk = unpack(constants)
    slot = U64(cuda.blockIdx.x)
    base = ((first >> PMD_SHIFT) + slot) << PMD_SHIFT
    kind = plans[slot, _KIND]
    row = plans[slot, _ROW]
    word = plans[slot, _WORD]
    step = plans[slot, _STEP]
    cpu_flags = plans[slot, _CPU_FLAGS]
    start = plans[slot, _START]
    index = U64(cuda.threadIdx.x)
    while index <= INDEX_MASK:
        va = base + (index << PAGE_SHIFT)
        index = index + _THREADS
        if va >= first and va < past:
            page = (va - walk.start) >> PAGE_SHIFT
            at_kind = kind
            if kind == KIND_MIXED:
                extent = extent_at(va, first, walk, vmas, upper, child)
                at_kind = extent.kind
                row = extent.row
                word = extent.word
                step = extent.step
                cpu_flags = extent.cpu_flags
                start = extent.start
            request = ZERO
            if asks_by_page(walk):
                asking = page
                if at_kind == KIND_FILL_FIRST:
                    asking = (start - walk.start) >> PAGE_SHIFT
                request = hmm_pfns[asking]
            if at_kind == KIND_LEAF:
                pte = leaf[row, (va >> PAGE_SHIFT) & INDEX_MASK]
                words[page] = pte_word(pte, walk, owners)
                if may_fault(walk) and pte_stop(pte, request, walk, owners)[0] != ACTION_NONE:
                    cuda.atomic.min(stop, ZERO, va)
            elif at_kind == KIND_FORCED:
                cuda.atomic.min(stop, ZERO, start)
            else:
                words[page] = word + ((va - start) >> PAGE_SHIFT) * step
                need = hmm_pte_need_fault(request, cpu_flags, walk.default_flags, walk.pfn_flags_mask)
                if need != ZERO:
                    cuda.atomic.min(stop, ZERO, start)


def describe(constants, vmas, owners, upper, child, leaf, hmm_pfns, stop, description):
    """Describe the first stop as :func:`gpuhmm.walk.span.describe_stop` does; one block.

    The need of an extent is the OR over its pages, which the threads share out.
    """
    walk = unpack(constants)
    va = stop[ZERO]
    index = U64(cuda.threadIdx.x)
    if va != NO_STOP:
        extent = extent_at(va, va, walk, vmas, upper, child)
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


register()
plan_kernel = cuda.jit(plan)
resolve_kernel = cuda.jit(resolve)
describe_kernel = cuda.jit(describe)

#: Every kernel with the numba types of its arguments, for the compile gate.
KERNELS = {
    plan_kernel: "uint64, uint64, Array1, Array2, Array2, ChildArray, Array2, Array1",
    resolve_kernel: (
        "uint64, uint64, Array1, Array2, Array2, Array2, ChildArray, Array2, Array2, Array1, Array1, Array1"
    ),
    describe_kernel: "Array1, Array2, Array2, Array2, ChildArray, Array2, Array1, Array1, Array1",
}


def hmm_range_fault(range_: HmmRange) -> int:
    """Return 0 or a negative errno; see :func:`gpuhmm.hmm_range_fault`."""
    return settle(range_, CudaResolver(range_))


class CudaResolver:
    """Resolves waves of one call on the device; see :class:`gpuhmm.settle.Resolver`."""

    def __init__(self, range_: HmmRange) -> None:
        self.range = range_
        self.mm = range_.notifier.mm
        self.max_wave = max(range_.npages, 1)
        self.first_wave = self.max_wave
        constants = walk_constants(range_)
        by_name = Walk(*constants)
        fault = bool(may_fault(by_name))
        self.cuts_need = bool(asks_by_page(by_name))
        self.constants = cuda.to_device(constants)
        self.host_constants = constants
        self.tables = device_tables(self.mm)
        self.vma_columns: Any = None
        self.stop = cuda.device_array(1, dtype=np.uint64)
        self.description = cuda.device_array(DESCRIPTION, dtype=np.uint64)
        self.no_stop = np.array([NO_STOP], dtype=np.uint64)
        if range_.on_device:
            self.inputs = cuda.as_cuda_array(range_.hmm_pfns)
        elif self.cuts_need:
            self.inputs = cuda.to_device(range_.hmm_pfns)
        else:
            self.inputs = cuda.device_array(1, dtype=np.uint64)  # never read
        in_place = range_.on_device and not fault
        self.words = self.inputs if in_place else cuda.device_array(range_.npages, dtype=np.uint64)

    def wave_end(self, va: int) -> int:
        """Return the end of the extent that ``va - 1`` lies in, where needs are an OR over pages."""
        if not self.cuts_need:
            return va
        from gpuhmm.kernels.cpu import extent_end

        tables = self.mm.page_tables
        return int(
            extent_end(
                U64(va - 4096), self.host_constants, self.mm.vmas.columns(), tables.upper, tables.child
            )
        )

    def resolve(self, first: int, past: int) -> Stop | None:
        """Write the words of ``[first, past)`` to the second buffer; return the first stop."""
        self._send_vmas()
        upper, child, leaf = self.tables.sync()
        slots = ((past - 1) >> 21) - (first >> 21) + 1
        plans = cuda.device_array((slots, PLAN_COLUMNS), dtype=np.uint64)
        self.stop.copy_to_device(self.no_stop)
        plan_kernel[-(-slots // THREADS), THREADS](
            U64(first), U64(past), self.constants, self.vmas, upper, child, plans, self.stop
        )
        resolve_kernel[slots, THREADS](
            U64(first),
            U64(past),
            self.constants,
            self.vmas,
            self.owners,
            upper,
            child,
            leaf,
            plans,
            self.inputs,
            self.words,
            self.stop,
        )
        stop = int(self.stop.copy_to_host()[0])
        if stop == int(ALL_ONES):
            return None
        describe_kernel[1, THREADS](
            self.constants,
            self.vmas,
            self.owners,
            upper,
            child,
            leaf,
            self.inputs,
            self.stop,
            self.description,
        )
        return Stop(stop, *map(int, self.description.copy_to_host()))

    def finish(self, past: int) -> None:
        """Copy the words below ``past`` to where the caller expects them."""
        npages = (past - self.range.start) >> 12
        if not npages or self.words is self.inputs:
            return
        if self.range.on_device:
            self.inputs[:npages].copy_to_device(self.words[:npages])
        else:
            self.words[:npages].copy_to_host(self.range.hmm_pfns[:npages])

    def _send_vmas(self) -> None:
        columns = self.mm.vmas.columns()
        if columns is not self.vma_columns:
            self.vma_columns = columns
            self.vmas = to_device(columns)
            self.owners = to_device(self.mm.device_private)


def to_device(table: np.ndarray) -> Any:
    """Return a device copy; of an empty table one whose shape is kept but that can be allocated."""
    if table.size:
        return cuda.to_device(table)
    return cuda.device_array((max(table.shape[0], 1), max(table.shape[1], 1)), dtype=table.dtype)[
        : table.shape[0], : table.shape[1]
    ]
