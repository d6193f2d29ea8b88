"""A VA block of UVM: 2 MiB with one notifier, and what one batch services of it.

Source: uvm_gpu_replayable_faults.c:service_fault_batch_block_locked;
uvm_va_block.c:uvm_va_block_service_locked; uvm_hmm.c:hmm_make_resident_cpu, uvm_hmm_invalidate,
uvm_hmm_get_prefetch_region (NVIDIA UVM 595.45.04).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.access import ACCESS_NEEDS, ACCESS_WRITE
from gpuhmm.coalesce.areas import BLOCK_SHIFT, DPT_CANCELLED
from gpuhmm.coalesce.drivers.uvm.prefetch import BlockPrefetch
from gpuhmm.coalesce.drivers.uvm.prefetch_tree import BLOCK_PAGES
from gpuhmm.coalesce.drivers.uvm.settings import UvmSettings
from gpuhmm.coalesce.drivers.uvm.thrashing import BlockThrashing, Cause, SpaceThrashing
from gpuhmm.coalesce.drivers.uvm.thrashing_hint import CPU, GPU, HintKind
from gpuhmm.coalesce.ranges import RangeRequest
from gpuhmm.coalesce.service import FaultService
from gpuhmm.hmm.words import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE
from gpuhmm.mirror.page_table import DPT_VALID
from gpuhmm.mm.tables import Words
from gpuhmm.mm.vma import VM_WRITE, Vma

_READ = HMM_PFN_REQ_FAULT
_READ_WRITE = HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE


class VaBlock:
    """2 MiB of address space number ``space``, from byte ``number`` << 21 on (``uvm_va_block_t``)."""

    def __init__(
        self,
        service: FaultService,
        space: int,
        number: int,
        settings: UvmSettings,
        thrashing: SpaceThrashing | None,
    ) -> None:
        self.space = space
        self.start = number << BLOCK_SHIFT
        self.end = self.start + (1 << BLOCK_SHIFT)
        self.settings = settings
        self.prefetch = BlockPrefetch(settings.prefetch_min_faults, settings.prefetch_threshold)
        #: None where thrashing is not looked for.
        self.thrashing = None if thrashing is None else BlockThrashing(thrashing)
        self._pieces = service.areas.pieces(space, self.start, self.end)
        self._service = service
        self.notifier = service.notifier(space, self.start, self.end, self._invalidated)

    def _invalidated(self, start: int, end: int) -> None:
        taken = np.zeros(BLOCK_PAGES, dtype=np.bool_)
        taken[(start - self.start) >> 12 : (end - self.start) >> 12] = True
        self.moved(taken & (self.entries() & DPT_VALID != 0), CPU)

    def moved(self, pages: npt.NDArray[np.bool_], processor: int, cause: Cause = Cause.FAULT) -> None:
        """Note that ``pages`` went to a processor: the GPU mapped them, or the CPU took them from it."""
        if self.thrashing is None:
            return
        edges = np.flatnonzero(np.diff(pages, prepend=False, append=False))
        for first, past in edges.reshape(-1, 2).tolist():
            self.thrashing.notify(first, past, processor, max(self._service.clock, 1), cause=cause)

    def entries(self) -> Words:
        """Return what the GPU has mapped of the block: uint64[512], 0 outside of the device's areas."""
        found = np.zeros(BLOCK_PAGES, dtype=np.uint64)
        for low, first, past in self._pieces:
            at = (low - self.start) >> 12
            found[at : at + past - first] = self._service.areas.entries[first:past]
        return found


class BlockService:
    """The faults of a batch on one block, as far as one VMA goes (``uvm_service_block_context_t``)."""

    def __init__(self, service: FaultService, block: VaBlock, vma: Vma) -> None:
        self.block = block
        self.vma = vma
        self.faulted: npt.NDArray[np.bool_] = np.zeros(BLOCK_PAGES, dtype=np.bool_)
        self._access = np.zeros(BLOCK_PAGES, dtype=np.uint8)
        self._service = service
        self._entries = block.entries()
        self._mapped: npt.NDArray[np.bool_] = self.faulted

    def add(self, va: int, access: int) -> int:
        """Take a fault in, unless the GPU may do that already; return until when it is throttled, or 0."""
        page = (va - self.block.start) >> 12
        need = ACCESS_NEEDS[access]
        if self._entries[page] & need == need:
            return 0
        if self.block.thrashing is not None:
            hint = self.block.thrashing.hint(page, GPU, self._service.clock)
            if hint.kind == HintKind.THROTTLE:
                self._service.batch.throttled += 1
                return max(hint.until, 1)
        self.faulted[page] = True
        self._access[page] = access
        return 0

    def refresh(self) -> bool:
        """Look again at what the GPU has, as the driver does when it services a block anew.

        Returns False if nothing is left to be serviced.
        """
        self._entries = self.block.entries()
        for page in np.flatnonzero(self.faulted):
            need = ACCESS_NEEDS[int(self._access[page])]
            if self._entries[page] & need == need:
                self.faulted[page] = False
        return bool(self.faulted.any())

    def request(self) -> RangeRequest:
        """Return what is asked of HMM: every page from the first to the last that is to be mapped.

        Each is asked for, also those between that nobody wants, and for writing wherever the VMA may be
        written (hmm_make_resident_cpu).
        """
        pages = self.faulted | self._prefetched()
        self._mapped = pages
        first, last = int(np.argmax(pages)), BLOCK_PAGES - 1 - int(np.argmax(pages[::-1]))
        region = slice(first, last + 1)
        writes = (self._access[region] >= ACCESS_WRITE) & self.faulted[region]
        if self.vma.flags & VM_WRITE:
            writes[:] = True
        return RangeRequest(
            self.block.space,
            self.block.start + (first << 12),
            self.block.start + ((last + 1) << 12),
            self.block.notifier,
            self.faulted[region].copy(),
            np.where(writes, _READ_WRITE, _READ),
            map_pages=pages[region].copy(),
        )

    def _prefetched(self) -> npt.NDArray[np.bool_]:
        if not self.block.settings.prefetch:
            return np.zeros(BLOCK_PAGES, dtype=np.bool_)
        first = max(self.vma.start - self.block.start, 0) >> 12
        outer = min(self.vma.end - self.block.start, 1 << BLOCK_SHIFT) >> 12
        resident = (self._entries & (DPT_VALID | DPT_CANCELLED)) == DPT_VALID
        thrashing = None if self.block.thrashing is None else self.block.thrashing.thrashing_pages()
        wanted = self.block.prefetch.hint(GPU, self.faulted, resident, thrashing, first=first, outer=outer)
        return wanted & ~resident

    def mapped(self) -> None:
        """Note that the GPU has what was asked for."""
        prefetched = self._mapped & ~self.faulted
        self._service.batch.prefetched += int(np.count_nonzero(prefetched))
        self.block.moved(self.faulted, GPU)
        self.block.moved(prefetched, GPU, Cause.PREFETCH)

    def addresses(self) -> list[int]:
        """Return the addresses of the pages that faulted."""
        return [self.block.start + (int(page) << 12) for page in np.flatnonzero(self.faulted)]
