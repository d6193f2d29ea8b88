"""The loop: a device faults, a driver serves, the device goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.batches import batch_table, totals
from gpuhmm.coalesce.costs import COSTS, Costs
from gpuhmm.coalesce.cpu_side import CpuActivity
from gpuhmm.coalesce.device.protocol import DeviceCounters, FaultingDevice
from gpuhmm.coalesce.drivers.driver import Driver
from gpuhmm.coalesce.service import FaultService
from gpuhmm.coalesce.spaces import check_spaces
from gpuhmm.coalesce.timeline import Timeline
from gpuhmm.errors import LivelockError
from gpuhmm.hmm.backends import resolve_backend
from gpuhmm.kernels.paths import one_thread_below
from gpuhmm.memory.space import AddressSpace

#: Batches in a row that neither map nor cancel anything, after which a run is taken for a livelock.
MAX_FUTILE_BATCHES = 10_000

#: Batches of a driver below this many pages are walked by one thread.
_ONE_THREAD_PAGES = 1 << 20


@dataclass(frozen=True)
class CoalesceRun:
    """What came of a device's work under one driver.

    ``batches`` is ``gpuhmm.coalesce.batches.BATCH_DTYPE``[n]; ``totals`` their sums and means; ``model_ns``
    the time that the cost model says it took; ``seconds`` what it took here; ``finished`` is false where
    ``max_batches`` ended it.
    """

    driver: str
    source: str
    settings: dict[str, Any]
    costs: Costs
    backend: str
    batches: npt.NDArray[np.void]
    totals: dict[str, Any]
    device: DeviceCounters
    timeline: Timeline
    model_ns: int
    seconds: float
    finished: bool


def coalesce(
    device: FaultingDevice,
    spaces: Sequence[AddressSpace],
    driver: Driver,
    *,
    costs: Costs = COSTS["sc21-titan-v"],
    backend: str = "auto",
    cpu: CpuActivity | None = None,
    timeline: Timeline | None = None,
    max_batches: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> CoalesceRun:
    """Let a device run to its end under a driver, and return what was counted.

    ``spaces`` are those of the device's areas (:func:`gpuhmm.coalesce.spaces.spaces_over`); ``cpu`` works
    meanwhile.  ``progress`` hears the number of batches now and then.  ValueError for spaces that do not fit
    the areas; LivelockError for a driver that leaves accesses stalled, or serves without ever mapping.
    """
    check_spaces(spaces, device.areas)
    service = FaultService(device, spaces, costs, resolve_backend(backend).name, cpu, timeline)
    driver.begin(service)
    began = time.perf_counter()
    with one_thread_below(_ONE_THREAD_PAGES):
        _serve_all(service, driver, max_batches, progress)
    service.close()
    table = batch_table(service.batches)
    return CoalesceRun(
        driver=driver.name,
        source=driver.source,
        settings=asdict(driver.settings),
        costs=costs,
        backend=service.backend,
        batches=table,
        totals=totals(table),
        device=device.counters,
        timeline=service.timeline,
        model_ns=service.clock,
        seconds=time.perf_counter() - began,
        finished=device.done(),
    )


def _serve_all(
    service: FaultService, driver: Driver, max_batches: int | None, progress: Callable[[int], None] | None
) -> None:
    futile, reached = 0, (-1, -1)
    while max_batches is None or len(service.batches) < max_batches:
        if not _until_fault(service, driver):
            break
        served = len(service.batches)
        service.run_cpu()
        driver.serve(service)
        now = _reached(service, served)
        futile = futile + max(len(service.batches) - served, 1) if now == reached else 0
        reached = now
        if futile > MAX_FUTILE_BATCHES:
            raise LivelockError(
                f"driver {driver.name} served {futile} batches without mapping or cancelling a page"
            )
        if progress is not None:
            progress(len(service.batches))


def _until_fault(service: FaultService, driver: Driver) -> bool:
    """Let the device, and the CPU with it, go on until a fault is in the buffer; False if none comes."""
    device, cpu = service.device, service.cpu
    while True:
        at = device.next_fault(service.clock, None if cpu is None else cpu.due)
        if at is not None:
            service.clock = max(service.clock, at)
            return True
        if device.done():
            return False
        if cpu is None or not device.running():
            raise LivelockError(
                f"driver {driver.name} leaves {device.stalled()} accesses stalled with nothing in the "
                "buffer; it must replay after it served"
            )
        service.clock = max(service.clock, cpu.due)
        service.run_cpu()


def _reached(service: FaultService, served: int) -> tuple[int, int]:
    """Return what changes when anything goes on: it stays the same only in a livelock.

    New accesses do not count: what a device can have outstanding is bounded, and replays make them anew.
    """
    new = service.batches[served:]
    moved = sum(batch.pages_mapped + batch.cancelled for batch in new)
    return (-1 if not moved else len(service.batches), service.device.counters.hits)
