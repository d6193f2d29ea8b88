"""NVIDIA's UVM driver: batches of 256, merging at fetch, VA blocks of 2 MiB, the prefetch tree, replays.

Source: uvm_gpu_replayable_faults.c:uvm_parent_gpu_service_replayable_faults, fetch_fault_buffer_entries,
preprocess_fault_batch, service_fault_batch, service_fault_batch_block_locked, fault_buffer_flush_locked;
uvm_hmm.c:hmm_block_cpu_fault_locked, hmm_make_resident_cpu, uvm_hmm_find_policy_end (NVIDIA UVM 595.45.04).

Pages stay in system memory, as they do where the driver does not migrate (uvm_hmm_must_use_sysmem): the GPU
maps what hmm_range_fault() reports.  "Resident" in the prefetch tree is what the GPU has mapped; a page
migrates to the GPU when it maps it and back to the CPU when an invalidation takes it away, for the detection
of thrashing.  An atomic access is served as a write.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from errno import EBUSY

from gpuhmm.coalesce.access import ACCESS_PREFETCH, ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.drivers.uvm.block import BlockService, VaBlock
from gpuhmm.coalesce.drivers.uvm.fetch import fetch
from gpuhmm.coalesce.drivers.uvm.replay import PrefetchFaults, updates_put
from gpuhmm.coalesce.drivers.uvm.settings import UvmSettings
from gpuhmm.coalesce.drivers.uvm.sort import SortedEntry, count_duplicates, sort_representatives
from gpuhmm.coalesce.drivers.uvm.thrashing import SpaceThrashing
from gpuhmm.coalesce.ranges import serve_ranges
from gpuhmm.coalesce.service import FaultService
from gpuhmm.errors import LivelockError
from gpuhmm.mm.vma import VM_READ, VM_WRITE, Vma

#: Times in a row that a block is serviced anew; the driver has no such bound.
MAX_TRIES = 1000


@dataclass
class _BatchState:
    """What the driver counts while it services a batch."""

    invalid_prefetches: int = 0
    #: When the last page that was held off may be served, 0 if none was.
    throttled_until: int = 0
    fatal: bool = False


@dataclass
class UvmDriver:
    """The bottom half of the replayable faults of one GPU."""

    settings: UvmSettings = field(default_factory=UvmSettings)
    name: str = "uvm"
    source: str = (
        "uvm_gpu_replayable_faults.c:uvm_parent_gpu_service_replayable_faults, uvm_perf_prefetch.c, "
        "uvm_perf_thrashing.c, uvm_hmm.c:hmm_make_resident_cpu (NVIDIA UVM 595.45.04)"
    )

    def begin(self, service: FaultService) -> None:
        """Begin a run, without any VA block."""
        self._put = 0
        self._blocks: dict[tuple[int, int], VaBlock] = {}
        self._thrashing: dict[int, SpaceThrashing] = {}
        self.prefetch_faults = PrefetchFaults(self.settings.batch, self.settings.reenable_prefetch_ms)

    # -- an interrupt -------------------------------------------------------------------------

    def serve(self, service: FaultService) -> None:
        """Service batches until the buffer is empty, or 20 of them.

        Follows uvm_parent_gpu_service_replayable_faults.
        """
        began = service.clock
        service.spend("interrupt")
        policy, batches, throttled, replays = self.settings.replay, 0, 0, 0
        while batches < self.settings.max_batches and throttled < self.settings.max_throttle:
            if service.get == self._put:
                self._put = service.read_put()
            if service.get == self._put:
                break
            cached = min(self._put - service.get, self.settings.batch)
            entries = service.fetch(service.get + cached)
            self._unpin(service)
            service.begin_batch(entries)
            fetched = fetch(entries, self.settings.coalesce)
            ordered = sort_representatives(fetched.representatives())
            service.batch.coalesced = fetched.coalesced
            service.spend("preprocess", cached)
            service.spend("batch")
            state = _BatchState()
            replayed = service.batch.replays
            self._service_batch(service, ordered, state)
            self._note_prefetches(service, state)
            replays += service.batch.replays - replayed
            if state.fatal:
                # The driver does not count the replay that cancels the faults.
                self._flush(service, fresh=True)
            else:
                if policy == "batch":
                    service.replay()
                elif policy == "batch-flush":
                    duplicates = count_duplicates(ordered)
                    self._flush(service, updates_put(duplicates, cached, self.settings.update_put_ratio))
                replays += policy in ("batch", "batch-flush")
                throttled += state.throttled_until > 0
            if service.clock == began:
                # Where nothing takes time, only this ends what holds pages off.
                service.wait(max(state.throttled_until - service.clock, 0))
            batches += 1
            service.end_batch()
        if policy == "once" or replays == 0:
            service.replay()

    def _flush(self, service: FaultService, fresh: bool) -> None:
        """Drop what is in the buffer up to PUT, which is read first if ``fresh``, and replay."""
        if fresh:
            self._put = service.read_put()
        service.flush(self._put)
        service.replay()

    def _note_prefetches(self, service: FaultService, state: _BatchState) -> None:
        wanted = self.prefetch_faults.after_batch(state.invalid_prefetches, service.clock)
        service.device.report_prefetches(wanted)

    def _unpin(self, service: FaultService) -> None:
        """Take from the GPU the pages whose pin is over; a timer does it in the driver."""
        for space, thrashing in self._thrashing.items():
            for thrashing_block, page in thrashing.unpin(service.clock):
                for (number, at), block in self._blocks.items():
                    if number == space and block.thrashing is thrashing_block:
                        va = (at << 21) + (page << 12)
                        service.areas.erase(space, va, va + 4096)

    # -- a batch ------------------------------------------------------------------------------

    def _service_batch(self, service: FaultService, ordered: list[SortedEntry], state: _BatchState) -> None:
        """Service the VA blocks of a batch in their order (service_fault_batch).

        Blocks are prepared one by one and asked for together, because none changes what another is asked
        for; where a replay or the CPU comes between them, one by one.
        """
        alone = self.settings.replay == "block" or service.cpu is not None
        waiting = []
        for entries, vma in self._blocks_of(service, ordered, state):
            waiting.append(self._prepare(service, entries, vma, state))
            if alone:
                self._finish(service, waiting, state)
                waiting = []
                self._replay_block(service, state)
        self._finish(service, waiting, state)

    def _replay_block(self, service: FaultService, state: _BatchState) -> None:
        if self.settings.replay == "block" and not state.fatal:
            service.replay()

    def _blocks_of(
        self, service: FaultService, ordered: list[SortedEntry], state: _BatchState
    ) -> Iterable[tuple[list[SortedEntry], Vma]]:
        """Yield the entries of each VA block, or of the part of it that one VMA covers.

        Entries that no VMA covers are fatal, or invalid prefetches.
        """
        at = 0
        while at < len(ordered):
            entry = ordered[at].entry
            vma = service.vma(entry.space, entry.va)
            if vma is None:
                if ordered[at].duplicate and ordered[at - 1].entry.access == ACCESS_PREFETCH:
                    # Marked for the fault before and for itself: the driver counts it twice.
                    state.invalid_prefetches += entry.instances
                self._unserviceable(service, ordered[at], state)
                self._replay_block(service, state)
                at += 1
                continue
            end = min((entry.va | ((1 << 21) - 1)) + 1, vma.end)
            past = at
            while past < len(ordered) and ordered[past].entry.space == entry.space:
                if ordered[past].entry.va >= end:
                    break
                past += 1
            yield ordered[at:past], vma
            at = past

    def _unserviceable(self, service: FaultService, item: SortedEntry, state: _BatchState) -> None:
        if item.entry.access == ACCESS_PREFETCH:
            state.invalid_prefetches += item.entry.instances
            return
        state.fatal = True
        service.cancel(item.entry.space, item.entry.va)

    def _prepare(
        self, service: FaultService, entries: list[SortedEntry], vma: Vma, state: _BatchState
    ) -> BlockService:
        entry = entries[0].entry
        key = (entry.space, entry.va >> 21)
        if key not in self._blocks:
            thrashing = None
            if self.settings.thrashing:
                thrashing = self._thrashing.setdefault(entry.space, SpaceThrashing())
            self._blocks[key] = VaBlock(service, *key, self.settings, thrashing)
        prepared = BlockService(service, self._blocks[key], vma)
        fatal = invalid = False
        for item in entries:
            if item.duplicate and not fatal:
                # What follows an invalid prefetch of the page is one, too.
                state.invalid_prefetches += item.entry.instances * invalid
                continue
            access = self._permitted(service, item, vma, state)
            invalid = access is None and item.entry.access == ACCESS_PREFETCH
            fatal = access != item.entry.access and not invalid
            if access is not None:
                state.throttled_until = max(state.throttled_until, prepared.add(item.entry.va, access))
        return prepared

    def _permitted(
        self, service: FaultService, item: SortedEntry, vma: Vma, state: _BatchState
    ) -> int | None:
        """Return the access to be serviced, None for none (check_fault_access_permissions)."""
        access = item.entry.access
        if vma.flags & (VM_WRITE if access >= ACCESS_WRITE else VM_READ):
            return access
        self._unserviceable(service, item, state)
        if access >= ACCESS_WRITE and item.entry.access_mask & 1 << ACCESS_READ and vma.flags & VM_READ:
            return ACCESS_READ
        return None

    def _finish(self, service: FaultService, prepared: list[BlockService], state: _BatchState) -> None:
        """Ask HMM for the blocks and map what it grants; a block that was invalidated is done again."""
        waiting = [block for block in prepared if block.faulted.any()]
        for _ in range(MAX_TRIES):
            if not waiting:
                return
            requests = [block.request() for block in waiting]
            rets = serve_ranges(service, requests, timeout_ns=None, max_tries=1)
            again = []
            for block, ret in zip(waiting, rets, strict=True):
                if ret == -EBUSY:
                    if block.refresh():
                        again.append(block)
                elif ret:
                    state.fatal = True
                    for va in block.addresses():
                        service.cancel(block.block.space, va)
                else:
                    block.mapped()
            waiting = again
        if waiting:
            raise LivelockError(
                f"driver uvm serviced the block at {waiting[0].block.start:#x} {MAX_TRIES} times in a row, "
                "always with an invalidation meanwhile: the CPU is faster than it"
            )
