"""What a modelled GPU is made of: counts, limits and times."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

#: Lanes of a warp, on every NVIDIA GPU.
WARP_LANES = 32

#: What each count and time may be: least and most.
_BOUNDS = {
    "gpcs": (1, 1 << 8),
    "utlbs": (1, 1 << 12),
    "sms": (1, 1 << 12),
    "warps_per_sm": (1, 1 << 10),
    "blocks_per_sm": (1, 1 << 10),
    "threads_per_sm": (WARP_LANES, 1 << 15),
    "utlb_outstanding": (1, 1 << 12),
    "buffer_entries": (1, 1 << 20),
    "fault_interval_ns": (1, 10**6),
    "hit_interval_ns": (0, 10**6),
    "access_latency_ns": (0, 10**6),
    "replay_latency_ns": (0, 10**9),
    "replay_skew_ns": (0, 10**6),
    "replay_jitter_ns": (0, 10**6),
    "block_interval_ns": (0, 10**6),
    "issue_interval_ns": (0, 10**6),
    "issue_jitter_ns": (0, 10**6),
    "launch_latency_ns": (0, 10**9),
}


@dataclass(frozen=True)
class DeviceConfig:
    """A GPU.  Times are whole ns.  ValueError, naming the field, for what cannot be.

    SC21 is Allen and Ge, "In-Depth Analyses of Unified Virtual Memory System for GPU Accelerated
    Computing"; the log is the ``short_log_32_ts`` of its artifact, one warp of a vector add on a Titan V.
    """

    name: str
    #: Graphics processing clusters.  Titan V: six (NVIDIA's Volta white paper).
    gpcs: int
    #: µTLBs; each serves ``sms / utlbs`` neighbouring SMs.  One a TPC of two SMs: assumed.
    utlbs: int
    #: SMs.  Titan V: 80 (SC21).
    sms: int
    #: Warps, blocks and threads that an SM holds at once (CUDA programming guide, compute capability 7.0).
    warps_per_sm: int = 64
    blocks_per_sm: int = 32
    threads_per_sm: int = 2048
    #: Faults of a µTLB that can wait for a replay (SC21: a warp's first batch has exactly 56).
    utlb_outstanding: int = 56
    #: Entries of the fault buffer (SC21: 6144 is the largest batch it could set).
    buffer_entries: int = 6144
    #: Between two faults that the GMMU writes, whichever µTLBs they come from (the log: 56 faults in about
    #: 0.9 µs, 32 in 0.5 µs).  The log has one µTLB only.  That all share the rate is assumed: the raw
    #: faults of a batch of sgemm stop growing at about 200, whatever the batch size (figures of the
    #: artifact), although 2240 could be outstanding.
    fault_interval_ns: int = 16
    #: Between two accesses of one µTLB that find their page: one a cycle.  Assumed.
    hit_interval_ns: int = 1
    #: From an access that finds its page to the data.  Assumed: memory of a Volta answers in about that.
    access_latency_ns: int = 500
    #: From the driver's replay to the first access made again by a µTLB.  Assumed: about the time
    #: of a write over PCIe and of the method that it starts.
    replay_latency_ns: int = 1000
    #: A replay reaches a µTLB up to that much later because of where it lies, always the same.  Fitted: with
    #: none at all the µTLBs of the regular pattern stay abreast, and its batches have half as many VA blocks.
    replay_skew_ns: int = 50
    #: A replay reaches each µTLB up to that much later, anew each time.  Assumed: µTLBs are not in lockstep.
    replay_jitter_ns: int = 200
    #: Between two blocks that the grid's scheduler hands out.  Assumed: one in about two cycles.
    block_interval_ns: int = 2
    #: Between two instructions of a warp that need not wait for each other.  Assumed.
    issue_interval_ns: int = 4
    #: A warp's instruction issues up to that much later, by chance.  Assumed.
    issue_jitter_ns: int = 40
    #: From the end of a kernel to the first block of the next one.  Assumed.
    launch_latency_ns: int = 5000

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a word (got {self.name!r})")
        for field, (least, most) in _BOUNDS.items():
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{field} must be a whole number (got {value!r})")
            if not least <= value <= most:
                raise ValueError(f"{field} must be within {least} and {most} (got {value})")
        if self.sms % self.utlbs:
            raise ValueError(f"sms must be a multiple of utlbs (got {self.sms} and {self.utlbs})")
        if self.gpcs > self.utlbs:
            raise ValueError(f"gpcs must be at most utlbs (got {self.gpcs} and {self.utlbs})")

    @property
    def sms_per_utlb(self) -> int:
        """SMs behind one µTLB."""
        return self.sms // self.utlbs

    def gpc(self, utlbs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the GPC of each µTLB, by number: they are shared out evenly, neighbours together."""
        return utlbs * self.gpcs // self.utlbs

    def with_settings(self, settings: dict[str, str | int]) -> DeviceConfig:
        """Return the configuration with some fields set, given as name and value, numbers also as words.

        ValueError for names that are no fields, and for values that are no whole numbers.
        """
        known = {field.name for field in fields(self)}
        changed: dict[str, Any] = {}
        for name, value in settings.items():
            if name not in known:
                raise ValueError(f"a device has the fields {', '.join(sorted(known))} (got {name!r})")
            if name == "name":
                changed[name] = value
                continue
            try:
                changed[name] = int(value)
            except ValueError:
                raise ValueError(f"{name} must be a whole number (got {value!r})") from None
        return replace(self, **changed)


#: The devices that are known by name.
DEVICES: dict[str, DeviceConfig] = {"titan-v": DeviceConfig("titan-v", gpcs=6, utlbs=40, sms=80)}


def device_config(name: str, settings: dict[str, str | int] | None = None) -> DeviceConfig:
    """Return a known device, with some fields set as in :meth:`DeviceConfig.with_settings`."""
    if name not in DEVICES:
        raise ValueError(f"a device must be one of {', '.join(DEVICES)} (got {name!r})")
    return DEVICES[name].with_settings(settings or {})
