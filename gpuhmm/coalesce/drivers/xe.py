"""xe: GPU SVM ranges of 2 MiB, 64 KiB or 4 KiB, one fault after the other from a queue.

Source: drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_range_find_or_insert, drm_gpusvm_range_chunk_size,
drm_gpusvm_check_pages, drm_gpusvm_get_pages (0542972950ef of torvalds/linux, 2026); drivers/gpu/drm/xe/
xe_svm.c:__xe_svm_handle_pagefault, xe_svm_invalidate (0131514f9789, about v6.18); xe_gt_pagefault.c:
pf_queue_work_func (v6.15), later xe_pagefault.c.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from errno import EBUSY, EFAULT, EINVAL, ENOENT, EPERM

import numpy as np

from gpuhmm.coalesce.access import ACCESS_READ
from gpuhmm.coalesce.drivers.gpusvm import CHUNKS, GpuSvm, GpuSvmRange
from gpuhmm.coalesce.ranges import RangeRequest, ask_ranges, asked_pages, map_pages, serve_ranges
from gpuhmm.coalesce.service import FaultService
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.errors import LivelockError
from gpuhmm.hmm.words import (
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    hmm_pfn_to_order,
    word_layout,
)
from gpuhmm.mm.profile import KernelProfile
from gpuhmm.mm.tables import Words
from gpuhmm.mm.vma import VM_WRITE, Vma

_FAULT = int(HMM_PFN_REQ_FAULT)
_WRITE = int(HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE)
_TIMEOUT_NS = 1_000_000_000

#: How often a fault whose pages cannot be had is tried again before the model stops: the driver never does.
MAX_RETRIES = 1000


@dataclass(frozen=True)
class XeSettings:
    """``largest`` is the largest chunk: 2M, 64K or 4K.  ``notifier_size`` bytes share a notifier (512M).

    Chunks of up to ``check_pages`` bytes, but for 4K, are taken only where every page is present: 64K on a
    card with memory of its own, 0 on an integrated GPU.  ``read_only``: the device's VMA may only be read.
    """

    largest: int = 1 << 21
    notifier_size: int = 1 << 29
    check_pages: int = 1 << 16
    read_only: bool = False

    def __post_init__(self) -> None:
        if self.largest not in CHUNKS:
            raise ValueError(f"largest must be one of 2M, 64K, 4K (got {self.largest})")
        size = self.notifier_size
        if size & (size - 1) or not 1 << 21 <= size <= 1 << 40:
            raise ValueError(f"notifier_size must be a power of two from 2M to 1024G (got {size})")
        if self.check_pages not in (0, *CHUNKS):
            raise ValueError(f"check_pages must be 0, 4K, 64K or 2M (got {self.check_pages})")


@dataclass
class XeDriver:
    """Handle the faults of the queue one after the other, each by the range around it.

    Each fault is answered by itself, and its access goes on.  The model replays when the queue is empty: then
    every stalled access had its answer, and none faults again only because its fault was not yet read.  A
    batch is what was in the queue together, for counting only.

    ``counts``: for each chunk size the faults (``fault_2M``), those whose range was valid already
    (``valid_2M``) and the ranges whose pages were got (``get_pages_2M``), and entries that the mappings of
    ``hmm_pfn_to_order`` take (``dma_mappings``).
    """

    settings: XeSettings = field(default_factory=XeSettings)
    name: str = "xe"
    source: str = (
        "drivers/gpu/drm/drm_gpusvm.c:drm_gpusvm_range_find_or_insert, drm_gpusvm_get_pages (2026); "
        "drivers/gpu/drm/xe/xe_svm.c:__xe_svm_handle_pagefault, xe_svm_invalidate (about v6.18)"
    )

    def begin(self, service: FaultService) -> None:
        """Begin a run, without ranges and with all counts at 0."""
        self._svm = GpuSvm(service, self.settings.notifier_size)
        self.counts = {f"{name}_{size}": 0 for name in _COUNTED for size in CHUNKS.values()}
        self.counts["dma_mappings"] = 0

    def serve(self, service: FaultService) -> None:
        """Handle faults until the queue is empty."""
        service.spend("interrupt")
        put = service.read_put()
        while service.get < put:
            faults = service.fetch(put)
            service.begin_batch(faults)
            service.spend("preprocess", len(faults))
            self._handle(service, self._svm, faults)
            put = service.read_put()
            if service.get == put:
                service.replay()
            service.end_batch()

    def _handle(self, service: FaultService, svm: GpuSvm, faults: FaultTrace) -> None:
        read_only = self.settings.read_only
        valid = dict.fromkeys(CHUNKS, 0)
        range_: GpuSvmRange | None = None
        for space, va, access in zip(
            faults.space.tolist(), faults.va.tolist(), faults.access.tolist(), strict=True
        ):
            if read_only and access > ACCESS_READ:
                service.cancel(space, va)
                continue
            if range_ is None or not (range_.start <= va < range_.end and range_.space == space):
                range_ = svm.find(space, va)
            if range_ is not None and range_.valid:
                valid[range_.size] += 1
                continue
            if self._fault(service, svm, faults, space, va):
                service.cancel(space, va)
            range_ = None
        for size, count in valid.items():
            self.counts[f"fault_{CHUNKS[size]}"] += count
            self.counts[f"valid_{CHUNKS[size]}"] += count
        service.batch.filtered += sum(valid.values())

    def _fault(self, service: FaultService, svm: GpuSvm, faults: FaultTrace, space: int, va: int) -> int:
        """Do what __xe_svm_handle_pagefault does where the range is not valid; 0 or a negative errno."""
        service.spend("batch")
        for _ in range(MAX_RETRIES):
            service.run_cpu()
            svm.collect_garbage()
            vma = service.vma(space, va)
            if vma is None:
                return -ENOENT
            if not self.settings.read_only and not vma.flags & VM_WRITE:
                return -EPERM
            range_ = svm.find(space, va)
            if range_ is None:
                size = self._chunk_size(service, svm, space, va, vma)
                if not size:
                    return -EINVAL
                range_ = svm.insert(space, va, size)
            chunk = CHUNKS[range_.size]
            self.counts[f"fault_{chunk}"] += 1
            if range_.valid:
                self.counts[f"valid_{chunk}"] += 1
                service.batch.filtered += 1
                return 0
            ret = self._get_pages(service, range_, faults)
            if ret not in (-EFAULT, -EPERM):
                return ret
        raise LivelockError(f"driver xe cannot get the pages around {va:#x} and would try again without end")

    def _chunk_size(self, service: FaultService, svm: GpuSvm, space: int, va: int, vma: Vma) -> int:
        """Return the size of a new range around ``va``, 0 if none fits (drm_gpusvm_range_chunk_size)."""
        low = va & -self.settings.notifier_size
        high = low + self.settings.notifier_size
        for size in CHUNKS:
            start = va & -size
            end = start + size
            if size > self.settings.largest or start < max(vma.start, low) or end > min(vma.end, high):
                continue
            if size == 4096:
                return size
            if svm.overlaps(space, start, end):
                continue
            if size > self.settings.check_pages or self._present(service, svm, space, start, end):
                return size
        return 0

    def _present(self, service: FaultService, svm: GpuSvm, space: int, start: int, end: int) -> bool:
        """True if every page is there for the CPU (drm_gpusvm_check_pages); nothing is faulted in."""
        request = RangeRequest(
            space, start, end, svm.notifier(space, start), np.zeros((end - start) >> 12, dtype=np.bool_)
        )
        deadline = service.clock + _TIMEOUT_NS
        while True:
            ask_ranges(service, [request], map_answers=False, read_retry=False)
            if request.ret != -EBUSY or service.clock > deadline:
                break
        return not request.ret and bool(((request.words & HMM_PFN_VALID) != 0).all())

    def _get_pages(self, service: FaultService, range_: GpuSvmRange, faults: FaultTrace) -> int:
        """Get the pages of a range and bind them; 0 or a negative errno."""
        request = RangeRequest(
            range_.space,
            range_.start,
            range_.end,
            range_.notifier,
            asked_pages(faults, range_.space, range_.start, range_.end),
            default_flags=_FAULT if self.settings.read_only else _WRITE,
            read_only=self.settings.read_only,
        )
        (ret,) = serve_ranges(service, [request], timeout_ns=_TIMEOUT_NS, map_answers=False)
        if not ret and range_.unmapped:
            return -EFAULT
        if not ret:
            map_pages(service, request)
            range_.valid = True
            self.counts[f"get_pages_{CHUNKS[range_.size]}"] += 1
            self.counts["dma_mappings"] += dma_mappings(request.words, range_.notifier.mm.kernel)
        return ret


_COUNTED = ("fault", "valid", "get_pages")


def dma_mappings(words: Words, kernel: KernelProfile) -> int:
    """Return how many mappings a range takes: each as large as the CPU's, cut at the range.

    Source: drm_gpusvm_hmm_pfn_to_order, whose result is a power of two.
    """
    orders = hmm_pfn_to_order(words, kernel).tolist()
    pfns = (words & word_layout(kernel).pfn).tolist()
    index = count = 0
    while index < len(words):
        size = 1 << orders[index]
        left = min(size - (pfns[index] & (size - 1)), len(words) - index)
        index += 1 << (left.bit_length() - 1)
        count += 1
    return count
