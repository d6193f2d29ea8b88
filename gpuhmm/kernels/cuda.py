"""The CUDA back end: plan and resolve on the device, in slots of 2 MiB of the range.

Words go to a second buffer, so that inputs survive a stop.  Slots of plain pages and of fills are
streamed, the others resolved page by page.  Tables stay on the device between calls; only those that
changed are sent again (:mod:`gpuhmm.kernels.device_tables`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda

from gpuhmm.hmm.settle import Stop
from gpuhmm.hmm.walk.arrays import host_arrays
from gpuhmm.hmm.walk.constants import Walk, asks_by_page, may_fault, walk_constants
from gpuhmm.hmm.walk.leaf import granted_to_all, plain_bits
from gpuhmm.hmm.walk.span import NO_STOP
from gpuhmm.kernels.cpu import extent_end
from gpuhmm.kernels.cuda_resolve import describe_kernel, merge_kernel, plan_kernel, resolve_kernel
from gpuhmm.kernels.cuda_stream import PLAN_COLUMNS, stream_asked_kernel, stream_kernel
from gpuhmm.kernels.device_tables import THREADS, device_tables
from gpuhmm.kernels.paths import PATHS
from gpuhmm.mm.x86 import U64

if TYPE_CHECKING:
    from gpuhmm.hmm.ranges import HmmRange

#: Blocks that resolve marked slots page by page, each one slot after the other.
_RESOLVE_BLOCKS = 2048

#: What comes back from the device after a wave: the stop and its description.
_ANSWER = 6


def resolver(range_: HmmRange, stream: Any = None) -> CudaResolver:
    """Return what resolves the waves of one call.

    All work is done in ``stream``, a numba CUDA stream (None: the default one), and is over on return.
    """
    return CudaResolver(range_, stream)


class CudaResolver:
    """Resolves waves of one call on the device; see :class:`gpuhmm.hmm.settle.Resolver`."""

    def __init__(self, range_: HmmRange, stream: Any = None) -> None:
        self.range = range_
        self.stream: Any = 0 if stream is None else stream
        self.mm = range_.notifier.mm
        self.max_wave = max(range_.npages, 1)
        self.first_wave = self.max_wave
        self.host_constants = walk_constants(range_)
        self.walk = Walk(*self.host_constants)
        self.cuts_need = bool(asks_by_page(self.walk))
        self.granted = granted_to_all(self.walk)
        self.plain = plain_bits(self.walk)
        self.constants = cuda.to_device(self.host_constants, stream=self.stream)
        self.tables = device_tables(self.mm)
        self.answer = cuda.device_array(_ANSWER, dtype=np.uint64)
        # Pinned, so that the copies of every wave need no buffer in between.
        self.no_stop = cuda.pinned_array(_ANSWER, dtype=np.uint64)
        self.no_stop[:] = [NO_STOP] + [0] * (_ANSWER - 1)
        self.answer_here = cuda.pinned_array(_ANSWER, dtype=np.uint64)
        self.plans: Any = None
        self._place_words()

    def _place_words(self) -> None:
        """Lay inputs and words out so that a slot's words begin at a multiple of 16 bytes."""
        range_ = self.range
        # Page 0 of a slot has an even number; the first page of the range may have an odd one.
        shift = range_.start >> 12 & 1
        keeps = bool(self.walk.hmm_pfn_sticky)
        in_place = range_.on_device and not may_fault(self.walk) and not keeps
        self.may_stream = PATHS.stream
        if range_.on_device:
            simulated = not hasattr(range_.hmm_pfns, "__cuda_array_interface__")
            self.inputs = range_.hmm_pfns if simulated else cuda.as_cuda_array(range_.hmm_pfns)
            pointer = 0 if simulated else range_.hmm_pfns.__cuda_array_interface__["data"][0]
            if (in_place or self.cuts_need) and (pointer >> 3) + shift & 1:
                self.may_stream = False
        elif self.cuts_need:
            self.inputs = _aligned(range_.npages, shift)
            self.inputs.copy_to_device(range_.hmm_pfns, stream=self.stream)
        else:
            self.inputs = cuda.device_array(1, dtype=np.uint64)  # never read
        self.words = self.inputs if in_place else _aligned(range_.npages, shift)

    def wave_end(self, va: int) -> int:
        """Return the end of the extent that ``va - 1`` lies in, where needs are an OR over pages."""
        if not self.cuts_need:
            return va
        return int(extent_end(U64(va - 4096), self.host_constants, *host_arrays(self.mm)))

    def resolve(self, first: int, past: int) -> Stop | None:
        """Write the words of ``[first, past)`` to the second buffer; return the first stop."""
        vmas, owners = self.tables.areas(self.mm)
        upper, child, leaf = self.tables.sync(self.stream)
        slots = ((past - 1) >> 21) - (first >> 21) + 1
        if self.plans is None:  # the first wave is the largest but where a slot is cut: one more then
            most = (self.range.npages >> 9) + 2
            self.plans = cuda.device_array((most, PLAN_COLUMNS), dtype=np.uint64)
            self.streams = cuda.device_array(most, dtype=np.uint64)
            self.marks = cuda.device_array(most, dtype=np.uint64)
        self.answer.copy_to_device(self.no_stop, stream=self.stream)
        stop, description = self.answer[:1], self.answer[1:]
        bounds = U64(first), U64(past)
        state = (self.constants, vmas, owners, upper, child, leaf, self.inputs)
        plan_kernel[-(-slots // THREADS), THREADS, self.stream](
            *bounds,
            *state,
            U64(self.may_stream),
            self.plans,
            self.streams,
            self.marks,
            stop,
        )
        if self.may_stream:
            self._stream(first, slots, leaf)
        resolve_kernel[min(slots, _RESOLVE_BLOCKS), THREADS, self.stream](
            *bounds,
            U64(slots),
            *state,
            self.plans,
            self.marks,
            self.words,
            stop,
        )
        describe_kernel[1, THREADS, self.stream](*state, stop, description)
        self.answer.copy_to_host(self.answer_here, stream=self.stream)
        self._wait()
        answer = [int(value) for value in self.answer_here]
        return None if answer[0] == int(NO_STOP) else Stop(*answer)

    def _stream(self, first: int, slots: int, leaf: Any) -> None:
        entries = leaf.reshape(leaf.shape[0] * leaf.shape[1])
        second = U64((((first >> 21) + 1 << 21) - self.range.start) >> 12)
        state = (self.plans, self.streams, entries)
        if self.cuts_need:
            stream_asked_kernel[slots, THREADS, self.stream](
                second,
                self.walk.default_flags,
                self.walk.pfn_flags_mask,
                self.plain,
                self.walk.highest_memmap_pfn,
                *state,
                self.inputs,
                self.words,
                self.marks,
            )
        else:
            stream_kernel[slots, THREADS, self.stream](
                second,
                self.granted | self.plain,
                self.walk.highest_memmap_pfn,
                *state,
                self.words,
                self.marks,
            )

    def finish(self, past: int) -> None:
        """Copy the words below ``past`` to where the caller expects them, beside what is kept there."""
        npages = (past - self.range.start) >> 12
        if not npages or self.words is self.inputs:
            return
        sticky = self.walk.hmm_pfn_sticky
        words = self.words[:npages]
        if self.range.on_device and sticky:
            merge_kernel[-(-npages // THREADS), THREADS, self.stream](sticky, words, self.inputs[:npages])
        elif self.range.on_device:
            self.inputs[:npages].copy_to_device(words, stream=self.stream)
        else:
            here = self.range.hmm_pfns[:npages]
            kept = here & sticky if sticky else None
            words.copy_to_host(here, stream=self.stream)
            if kept is not None:
                self._wait()
                here |= kept
        self._wait()

    def _wait(self) -> None:
        """Wait for the end of everything so far; the default stream's copies have waited already."""
        if self.stream != 0:
            self.stream.synchronize()


def _aligned(npages: int, shift: int) -> Any:
    """Return uint64[npages] on the device, at a multiple of 16 bytes if ``shift`` is 0, else 8 beyond one."""
    return cuda.device_array(npages + 1, dtype=np.uint64)[shift : shift + npages]
