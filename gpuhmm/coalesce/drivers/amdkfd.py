"""amdkfd: no batches; each fault by itself, dropped within 2 ms after its range was validated.

Source: drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_restore_pages, svm_range_get_range_boundaries,
svm_range_validate_and_map, svm_range_cpu_invalidate_pagetables, svm_range_unmap_split, svm_range_split_new;
amdgpu/amdgpu_hmm.c:amdgpu_hmm_range_get_pages (amdgpu_mn.c in v6.1).  Read at commits 006ad514a50c (about
v6.12), 2fd24407457a and 0eaed89c18ae (May 2026) of torvalds/linux and gregkh/linux.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from errno import EAGAIN, EBUSY, EFAULT, EPERM

import numpy as np

from gpuhmm.coalesce.access import ACCESS_READ
from gpuhmm.coalesce.drivers.pranges import Prange, Pranges
from gpuhmm.coalesce.ranges import RangeRequest, ask_ranges, asked_pages, map_pages
from gpuhmm.coalesce.service import FaultService
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.hmm.words import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE
from gpuhmm.mm.vma import VM_READ, VM_WRITE

EBUSYS = ("refresh", "spin", "give-up")

_FAULT = int(HMM_PFN_REQ_FAULT)
_WRITE = int(HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE)


@dataclass(frozen=True)
class AmdkfdSettings:
    """What changed from version to version; the defaults are v6.12.

    ``window`` bytes around a fault are validated together (the granularity of a range), with 0 the whole
    range as in v6.1.  A fault within ``duplicate_ms`` after the last validation of its range is dropped.
    ``chunk`` bytes at most are asked for with one call: 2G, 64G when chunks came, none (0) in v6.1.
    ``ebusy`` is what -EBUSY of hmm_range_fault leads to: with ``refresh`` the sequence is read anew and it
    is tried again until the time is up; ``spin`` (a while in May 2026) reads the sequence once, so that
    trying again cannot help; ``give-up`` (since then) tries once.  ``registered``: areas were given to the
    driver beforehand and split at this size (svm_range_split_new), 0 for ranges made by faults only.
    ``retry_us``, an assumption: accesses that a pass over the ring left stalled are made again that long
    after its begin at the earliest.
    """

    window: int = 1 << 21
    duplicate_ms: float = 2.0
    chunk: int = 1 << 31
    ebusy: str = "refresh"
    registered: int = 0
    retry_us: float = 10.0

    def __post_init__(self) -> None:
        for name, low, high in (("window", 12, 30), ("chunk", 12, 40), ("registered", 21, 30)):
            size = getattr(self, name)
            if size and (size & (size - 1) or not 1 << low <= size <= 1 << high):
                raise ValueError(f"{name} must be 0 or a power of two from 2^{low} to 2^{high} (got {size})")
        if not 0 <= self.duplicate_ms <= 5:
            raise ValueError(f"duplicate_ms must be from 0 to 5 (got {self.duplicate_ms})")
        if self.ebusy not in EBUSYS:
            raise ValueError(f"ebusy must be one of {', '.join(EBUSYS)} (got {self.ebusy!r})")
        if not 1 <= self.retry_us <= 1000:
            raise ValueError(f"retry_us must be from 1 to 1000 (got {self.retry_us})")


@dataclass
class AmdkfdDriver:
    """Handle the faults of the ring one after the other; the hardware makes stalled accesses again by itself.

    With XNACK there is no replay to ask for.  The model replays once at the end of each pass over the ring:
    what was mapped goes on, everything else faults again, whether its fault was served, dropped or not seen
    yet.  A batch is one pass, for counting only.
    """

    settings: AmdkfdSettings = field(default_factory=AmdkfdSettings)
    name: str = "amdkfd"
    source: str = (
        "drivers/gpu/drm/amd/amdkfd/kfd_svm.c:svm_range_restore_pages, svm_range_validate_and_map; "
        "amdgpu/amdgpu_hmm.c:amdgpu_hmm_range_get_pages (v6.12; v6.1 and May 2026 by settings)"
    )

    def begin(self, service: FaultService) -> None:
        """Begin a run with the ranges that the process registered."""
        self._pranges = Pranges(service, self.settings.registered)

    def serve(self, service: FaultService) -> None:
        """Handle the faults that are in the ring."""
        pranges, batch = self._pranges, service.batch
        began = service.clock
        service.spend("interrupt")
        faults = service.fetch(service.read_put())
        service.begin_batch(faults)
        service.spend("preprocess", len(faults))
        pending, filtered = int(self.settings.duplicate_ms * 1e6), 0
        prange: Prange | None = None
        for space, va, access in zip(
            faults.space.tolist(), faults.va.tolist(), faults.access.tolist(), strict=True
        ):
            if prange is None or not (prange.start <= va < prange.end and prange.space == space):
                prange = pranges.find(space, va)
            if prange is not None and service.clock < prange.validated + pending:
                filtered += 1
                continue
            ret = self._restore(service, pranges, faults, space, va, access)
            if ret and ret != -EAGAIN:
                service.cancel(space, va)
            prange = None
        batch.filtered += filtered
        service.wait(max(began + int(self.settings.retry_us * 1000) - service.clock, 0))
        service.replay()
        service.end_batch()

    def _restore(
        self, service: FaultService, pranges: Pranges, faults: FaultTrace, space: int, va: int, access: int
    ) -> int:
        """Do what svm_range_restore_pages does once a fault was not dropped; 0 or a negative errno."""
        service.run_cpu()
        service.spend("batch")
        pranges.flush_deferred()
        prange = pranges.find(space, va)
        vma = service.vma(space, va)
        if prange is None:
            if vma is None:
                return -EFAULT
            prange = pranges.create(space, va, vma)
        if vma is None:
            return 0
        need = VM_READ | (VM_WRITE if access > ACCESS_READ else 0)
        if vma.flags & need != need:
            return -EPERM
        start, end = prange.start, prange.end
        if self.settings.window:
            start = max(start, va & -self.settings.window)
            end = min(end, (va & -self.settings.window) + self.settings.window)
        return self._validate(service, prange, faults, start, end)

    def _validate(self, service: FaultService, prange: Prange, faults: FaultTrace, low: int, end: int) -> int:
        """Get and map the pages of ``[low, end)``, a VMA at a time; a range that was got has a time."""
        while low < end:
            vma = service.vma(prange.space, low)
            if vma is None:
                return -EFAULT
            past = min(vma.end, end)
            request = RangeRequest(
                prange.space,
                low,
                past,
                prange.notifier,
                asked_pages(faults, prange.space, low, past),
                default_flags=_WRITE if vma.flags & VM_WRITE else _FAULT,
                read_only=not vma.flags & VM_WRITE,
            )
            ret = self._get_pages(service, request)
            if ret:
                return -EAGAIN if ret == -EBUSY else ret
            assert request.notifier_seq is not None
            if prange.notifier.read_retry(request.notifier_seq):
                service.batch.read_retries += 1
                return -EAGAIN
            map_pages(service, request)
            low = past
        prange.validated = service.clock
        return 0

    def _get_pages(self, service: FaultService, request: RangeRequest) -> int:
        """Fill ``request.words`` chunk by chunk, and ``notifier_seq`` with the last sequence read."""
        chunk = self.settings.chunk or request.end - request.start
        request.notifier_seq = request.notifier.read_begin()
        words = []
        for start in range(request.start, request.end, chunk):
            end = min(start + chunk, request.end)
            asked = np.zeros((end - start) >> 12, dtype=np.bool_)
            part = RangeRequest(
                request.space, start, end, request.notifier, asked, default_flags=request.default_flags
            )
            # A second for each 512 MiB.
            deadline = service.clock + max((end - start) >> 29, 1) * 1_000_000_000
            while True:
                part.notifier_seq = request.notifier_seq
                ask_ranges(service, [part], map_answers=False, read_retry=False)
                if part.ret != -EBUSY or self.settings.ebusy == "give-up" or service.clock > deadline:
                    break
                if self.settings.ebusy == "spin":
                    _spin(service, part, deadline)
                    break
                request.notifier_seq = request.notifier.read_begin()
            if part.ret:
                return part.ret
            words.append(part.words)
            if self.settings.ebusy == "refresh" and end < request.end:
                # Read before every call: what became stale in a chunk before goes unnoticed.
                request.notifier_seq = request.notifier.read_begin()
        request.words = np.concatenate(words)
        return 0


def _spin(service: FaultService, request: RangeRequest, deadline: int) -> None:
    """Count the calls that return -EBUSY until the time is up: with a stale sequence none does anything."""
    cost = service.costs.block + service.costs.walk * request.npages
    calls = int(max(deadline - service.clock, 0) / cost) + 1 if cost else 1
    service.spend("block", calls)
    service.spend("walk", calls * request.npages)
    service.wait(max(deadline + 1 - service.clock, 0))
    service.batch.hmm_calls += calls
    service.batch.walks += calls
    service.batch.ebusy += calls
