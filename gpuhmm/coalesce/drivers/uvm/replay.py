"""When UVM replays, flushes with a fresh PUT, and turns prefetch faults off and on.

Source: uvm_gpu_replayable_faults.c:uvm_parent_gpu_service_replayable_faults, enable_disable_prefetch_faults
(NVIDIA UVM 595.45.04).
"""

from __future__ import annotations

from typing import Any

#: Batches of one run of the bottom half, and those among them with throttled faults, at most.
MAX_BATCHES_PER_SERVICE = 20
MAX_THROTTLE_PER_SERVICE = 5
#: Duplicates in percent of a batch above which a flush reads PUT from the GPU.
UPDATE_PUT_RATIO = 50
#: How long prefetch faults stay off, in ms; 0: they are never turned off.
REENABLE_PREFETCH_FAULTS_LAPSE_MS = 1000


def updates_put(duplicates: Any, cached: Any, ratio: int = UPDATE_PUT_RATIO) -> Any:
    """Return whether the flush after a batch of ``cached`` faults reads PUT from the GPU first.

    Of arrays, uint64[n], for many batches: bool[n].  ``duplicates`` is what
    :func:`gpuhmm.coalesce.drivers.uvm.sort.count_duplicates` returns.  If PUT is not read, only what was
    in the buffer when PUT was last read is flushed.
    """
    return duplicates * 100 > cached * ratio


class PrefetchFaults:
    """Whether the GPU reports faults of prefetches.

    They go off when more than two thirds of ``batch`` (the batch size, not the faults of this batch) were
    invalid, and on again at the end of the first batch more than ``lapse_ms`` later.
    """

    def __init__(
        self, batch: int, lapse_ms: int = REENABLE_PREFETCH_FAULTS_LAPSE_MS, enabled: bool = True
    ) -> None:
        self.batch = batch
        self.lapse_ms = lapse_ms
        self.enabled = enabled
        self.disabled_at = 0

    def after_batch(self, invalid: int, now: int) -> bool:
        """Return ``enabled`` after a batch with ``invalid`` prefetch faults, which ends at ``now`` in ns."""
        if self.enabled:
            if self.lapse_ms > 0 and invalid * 3 > self.batch * 2:
                self.enabled = False
                self.disabled_at = now
        elif now - self.disabled_at > self.lapse_ms * 1_000_000:
            self.enabled = True
        return self.enabled
