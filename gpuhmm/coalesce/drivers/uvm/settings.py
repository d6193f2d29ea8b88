"""What can be set of NVIDIA's UVM driver: its module parameters, with the driver's defaults.

Source: uvm_gpu_replayable_faults.c, uvm_perf_prefetch.c (NVIDIA UVM 595.45.04).
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuhmm.coalesce.drivers.uvm.fetch import BATCH_COUNT
from gpuhmm.coalesce.drivers.uvm.prefetch import MAX_MIN_FAULTS, MIN_FAULTS, THRESHOLD
from gpuhmm.coalesce.drivers.uvm.replay import (
    MAX_BATCHES_PER_SERVICE,
    MAX_THROTTLE_PER_SERVICE,
    REENABLE_PREFETCH_FAULTS_LAPSE_MS,
    UPDATE_PUT_RATIO,
)

#: When faults are replayed (uvm_perf_fault_replay_policy 0 to 3): after each VA block, after each batch,
#: after each batch when the buffer was flushed, when all batches of the service are done.
REPLAYS = ("block", "batch", "batch-flush", "once")


@dataclass(frozen=True)
class UvmSettings:
    """The module parameters of the driver, with its defaults.

    ``batch`` uvm_perf_fault_batch_count; ``replay`` uvm_perf_fault_replay_policy; ``update_put_ratio`` and
    ``max_batches``, ``max_throttle`` of one service; ``coalesce`` merging at fetch; ``prefetch``,
    ``prefetch_threshold``, ``prefetch_min_faults`` of the tree; ``thrashing`` detection;
    ``reenable_prefetch_ms`` how long prefetch faults stay off.
    """

    batch: int = BATCH_COUNT
    replay: str = "batch-flush"
    update_put_ratio: int = UPDATE_PUT_RATIO
    max_batches: int = MAX_BATCHES_PER_SERVICE
    max_throttle: int = MAX_THROTTLE_PER_SERVICE
    coalesce: bool = True
    prefetch: bool = True
    prefetch_threshold: int = THRESHOLD
    prefetch_min_faults: int = MIN_FAULTS
    thrashing: bool = True
    reenable_prefetch_ms: int = REENABLE_PREFETCH_FAULTS_LAPSE_MS

    def __post_init__(self) -> None:
        for name, least, most in (
            ("batch", 1, 1 << 20),
            ("update_put_ratio", 0, 100),
            ("max_batches", 1, 1 << 20),
            ("max_throttle", 1, 1 << 20),
            ("prefetch_threshold", 1, 100),
            ("prefetch_min_faults", MIN_FAULTS, MAX_MIN_FAULTS),
            ("reenable_prefetch_ms", 0, 1 << 30),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from {least} to {most} (got {getattr(self, name)})")
        if self.replay not in REPLAYS:
            raise ValueError(f"replay must be one of {', '.join(REPLAYS)} (got {self.replay!r})")
