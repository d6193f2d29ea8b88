"""nouveau: the whole buffer is read and sorted, and every fault that none before it covered is served alone.

Source: drivers/gpu/drm/nouveau/nouveau_svm.c:nouveau_svm_fault, nouveau_svm_fault_cmp, nouveau_range_fault,
nouveau_atomic_range_fault, nouveau_hmm_convert_pfn, nouveau_svm_range_invalidate.  The rules of v6.1 were
read at commit 130377304ed0 of torvalds/linux (about v6.2 to v6.14), those of the window of 16 pages at
02712bc32508 (v5.3) with the loop around hmm_range_fault of v5.7.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from errno import EBUSY, EINVAL

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.access import ACCESS_ATOMIC_WEAK, ACCESS_PREFETCH, ACCESS_READ
from gpuhmm.coalesce.ranges import RangeRequest, asked_pages, map_pages, serve_ranges
from gpuhmm.coalesce.service import FaultService
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.hmm.words import (
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    hmm_pfn_to_order,
    word_layout,
)
from gpuhmm.memory import make_device_exclusive_range
from gpuhmm.mm.notifier import MMU_NOTIFY_EXCLUSIVE, MmuIntervalNotifier, MmuNotifierRange
from gpuhmm.mm.vma import VM_WRITE
from gpuhmm.mm.x86 import NO_PFN

VERSIONS = ("v6.1", "v5.7")
PREFETCHES = ("snapshot", "fault")

#: Pages that v5.7 asks for together at most (ARRAY_SIZE(args.phys)).
WINDOW_PAGES = 16

#: The owner of the driver's exclusive pages: drm->dev.
OWNER = 0x0B069

_PAGE = 4096
_FAULT = int(HMM_PFN_REQ_FAULT)
_WRITE = int(HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE)

# NVIF_VMM_PFNMAP_V0_V, _W and _A: what the mapping of a fault lets through.
_V, _W, _A = 1, 2, 4


@dataclass(frozen=True)
class NouveauSettings:
    """``version`` is ``v6.1`` (one page a call) or ``v5.7`` (up to 16 pages a call).

    ``prefetch``: v6.1 only looks for the pages of prefetch faults (``snapshot``); ``fault`` asks for them as
    for reads, as v5.7 always does.  ``timeout_ms`` bounds the retries of a call (HMM_RANGE_DEFAULT_TIMEOUT).
    """

    version: str = "v6.1"
    prefetch: str = "snapshot"
    timeout_ms: int = 1000

    def __post_init__(self) -> None:
        for name, known in (("version", VERSIONS), ("prefetch", PREFETCHES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)} (got {getattr(self, name)!r})")
        if self.timeout_ms < 1:
            raise ValueError(f"timeout_ms must be at least 1 (got {self.timeout_ms})")


@dataclass
class _Sorted:
    """The faults of an interrupt in the order in which they are handled, as columns and as lists."""

    entries: FaultTrace
    space: list[int]
    va: list[int]
    access: list[int]

    @classmethod
    def of(cls, entries: FaultTrace) -> _Sorted:
        return cls(entries, entries.space.tolist(), entries.va.tolist(), entries.access.tolist())

    def __len__(self) -> int:
        return len(self.va)


@dataclass
class NouveauDriver:
    """Read GET to PUT, sort, serve fault by fault, skip what the mapping before covers, replay once."""

    settings: NouveauSettings = field(default_factory=NouveauSettings)
    name: str = "nouveau"
    source: str = (
        "drivers/gpu/drm/nouveau/nouveau_svm.c:nouveau_svm_fault, nouveau_range_fault (v6.1; v5.7 for the "
        "window of 16 pages)"
    )

    def begin(self, service: FaultService) -> None:
        """Register the notifier of the whole address space, which takes pages from the device."""
        for area in service.areas.areas:
            service.notifier(area.space, area.start, area.end)

    def serve(self, service: FaultService) -> None:
        """Serve what is in the buffer, and replay once."""
        service.spend("interrupt")
        entries = service.fetch(service.read_put())
        service.begin_batch(entries)
        service.spend("preprocess", len(entries))
        service.spend("batch")
        if self.settings.version == "v5.7":
            self._serve_windows(service, _Sorted.of(entries[sort_order(entries, writes_first=True)]))
        else:
            self._serve_faults(service, _Sorted.of(entries[sort_order(entries)]))
        # The driver leaves the replay out where every fault was cancelled: a cancel is a replay of its own.
        service.replay()
        service.end_batch()

    # -- v6.1 ---------------------------------------------------------------------------------

    def _serve_faults(self, service: FaultService, faults: _Sorted) -> None:
        atomic, bits, at = False, 0, 0
        while at < len(faults):
            space, va, access = faults.space[at], faults.va[at], faults.access[at]
            # Once set it stays: every later fault of the interrupt takes the exclusive path, too.
            atomic |= access >= ACCESS_ATOMIC_WEAK
            if atomic:
                ret, limit = self._exclusive(service, space, va), va + _PAGE
                bits = bits if ret else _V | _W | _A
            else:
                ret, limit, mapped = self._map_one(service, faults, at)
                bits = bits if ret else mapped
            past = at + 1
            while past < len(faults) and _covered(faults, past, space, limit, access, bits):
                past += 1
            if ret:
                for index in range(at, past):
                    service.cancel(space, faults.va[index])
            else:
                service.batch.filtered += past - at - 1
            at = past

    def _request(self, access: int) -> int:
        if access == ACCESS_PREFETCH and self.settings.prefetch == "snapshot":
            return 0
        return _FAULT if access <= ACCESS_READ else _WRITE

    def _map_one(self, service: FaultService, faults: _Sorted, at: int) -> tuple[int, int, int]:
        """Ask for one page; return 0 or a negative errno, where its mapping ends, and what that allows."""
        space, va = faults.space[at], faults.va[at]
        notifier = _fault_notifier(service, space, va, va + _PAGE)
        flags = self._request(faults.access[at])
        request = RangeRequest(space, va, va + _PAGE, notifier, np.ones(1, np.bool_), default_flags=flags)
        try:
            (ret,) = serve_ranges(service, [request], timeout_ns=self._timeout(), map_answers=False)
        finally:
            notifier.remove()
        if ret:
            return ret, va + _PAGE, 0
        word = request.words[0]
        if not word & HMM_PFN_VALID:
            return 0, va + _PAGE, 0
        # The mapping is as large as the CPU's, aligned to its size.
        kernel = notifier.mm.kernel
        pfn_mask = word_layout(kernel).pfn
        order = int(hmm_pfn_to_order(request.words, kernel)[0])
        start = va & -(_PAGE << order)
        first = (word & pfn_mask) - np.uint64((va - start) >> 12)
        request.words = (first + np.arange(1 << order, dtype=np.uint64)) | (word & ~pfn_mask)
        request.start, request.end = start, start + (_PAGE << order)
        request.asked = asked_pages(faults.entries, space, start, request.end)
        map_pages(service, request)
        return 0, request.end, _V | (_W if word & HMM_PFN_WRITE else 0)

    def _exclusive(self, service: FaultService, space: int, va: int) -> int:
        """Make a page the device's alone and map it for atomics; return 0 or a negative errno.

        A try that is stale leaves the page exclusive.  The next one gives it back to the CPU first, which
        makes that try stale as well: once this began it goes on until the time is up or the page is another.
        """
        batch = service.batch
        notifier = _fault_notifier(service, space, va, va + _PAGE)
        deadline = service.clock + self._timeout()
        stale = 0
        try:
            while service.clock <= deadline:
                before = (service.clock, batch.handle_mm_faults, batch.invalidations, _due(service))
                seq = notifier.read_begin()
                service.run_cpu()
                vma = service.vma(space, va)
                if vma is not None and vma.flags & VM_WRITE and not vma.is_hugetlb:
                    batch.handle_mm_faults += 1
                    service.spend("fault")
                service.spend("block")
                pfn = make_device_exclusive_range(service.spaces[space], va, va + _PAGE, OWNER)[0]
                service.run_cpu()
                if pfn == NO_PFN:
                    return -EINVAL
                if not notifier.read_retry(seq):
                    request = RangeRequest(space, va, va + _PAGE, notifier, np.ones(1, np.bool_))
                    request.words = np.array([pfn | HMM_PFN_VALID | HMM_PFN_WRITE], dtype=np.uint64)
                    map_pages(service, request)
                    return 0
                batch.read_retries += 1
                stale += 1
                if stale > 1 and _due(service) == before[3]:
                    _repeat_stale(service, before, min(deadline, _due(service)))
        finally:
            notifier.remove()
        return -EBUSY

    # -- v5.7 ---------------------------------------------------------------------------------

    def _serve_windows(self, service: FaultService, faults: _Sorted) -> None:
        at = 0
        while at < len(faults):
            space, va = faults.space[at], faults.va[at]
            vma = service.vma(space, va)
            if vma is None:
                service.cancel(space, va)
                at += 1
                continue
            limit = min(va + WINDOW_PAGES * _PAGE, vma.end)
            pages: dict[int, int] = {}
            past = at
            while past < len(faults) and faults.space[past] == space and faults.va[past] < limit:
                # Of several faults of a page the first counts: a write, if there is one.
                flags = _FAULT if faults.access[past] <= ACCESS_READ else _WRITE
                pages.setdefault((faults.va[past] - va) >> 12, flags)
                past += 1
            self._map_window(service, faults, at, past, pages)
            at = past

    def _map_window(
        self, service: FaultService, faults: _Sorted, first: int, past: int, pages: dict[int, int]
    ) -> None:
        """Ask for the pages of the faults ``[first, past)``; what lies between them is mapped if present."""
        space, start = faults.space[first], faults.va[first]
        words = np.zeros(max(pages) + 1, dtype=np.uint64)
        for page, flags in pages.items():
            words[page] = flags
        end = start + len(words) * _PAGE
        notifier = _fault_notifier(service, space, start, end)
        request = RangeRequest(space, start, end, notifier, words != 0, words)
        try:
            (ret,) = serve_ranges(service, [request], timeout_ns=self._timeout())
        finally:
            notifier.remove()
        for index in range(first, past):
            word = 0 if ret else int(request.words[(faults.va[index] - start) >> 12])
            need = int(HMM_PFN_VALID) | (int(HMM_PFN_WRITE) if faults.access[index] > ACCESS_READ else 0)
            if word & need != need:
                service.cancel(space, faults.va[index])
        service.batch.filtered += past - first - len(pages)

    def _timeout(self) -> int:
        return self.settings.timeout_ms * 1_000_000


def sort_order(entries: FaultTrace, writes_first: bool = False) -> npt.NDArray[np.int64]:
    """Return the order in which faults are handled: by space and address, then by access.

    v6.1 sorts prefetch, read, write, atomic; v5.7 what writes before what reads (``writes_first``).  Where
    the kernel's sort leaves the order open, that of the buffer stands.
    """
    access = np.minimum(entries.access, ACCESS_ATOMIC_WEAK)
    return np.lexsort((access <= ACCESS_READ if writes_first else access, entries.va, entries.space))


def _covered(faults: _Sorted, index: int, space: int, limit: int, access: int, bits: int) -> bool:
    """True if a fault is left out: it lies in the mapping, and that suits the access of its *first* fault."""
    if faults.space[index] != space or faults.va[index] >= limit or access == ACCESS_PREFETCH:
        return faults.space[index] == space and faults.va[index] < limit
    if access == ACCESS_READ:
        return bool(bits & _V)
    return bool(bits & _W) and (access < ACCESS_ATOMIC_WEAK or bool(bits & _A))


def _fault_notifier(service: FaultService, space: int, start: int, end: int) -> MmuIntervalNotifier:
    """Return the notifier of one call: it only makes the walk stale, the other one unmaps."""

    def invalidate(notifier: MmuIntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
        if range_.event != MMU_NOTIFY_EXCLUSIVE or range_.owner != OWNER:
            notifier.set_seq(cur_seq)
            service.batch.invalidations += 1
        return True

    return service.spaces[space].notifier(start, end, invalidate)


def _due(service: FaultService) -> int:
    """Return when the CPU does something next, in ns: far away without one."""
    return 1 << 62 if service.cpu is None else service.cpu.due


def _repeat_stale(service: FaultService, before: tuple[int, int, int, int], until: int) -> None:
    """Count the tries like the last one that fit until a time: nothing happens that would change them."""
    batch = service.batch
    took = service.clock - before[0]
    tries = max(until - service.clock, 0) // took if took else 0
    batch.handle_mm_faults += tries * (batch.handle_mm_faults - before[1])
    batch.invalidations += tries * (batch.invalidations - before[2])
    batch.read_retries += tries
    # Where nothing takes time, the time is up all the same.
    service.wait(tries * took if took else max(until + 1 - service.clock, 0))
