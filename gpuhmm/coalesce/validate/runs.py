"""The experiments behind the rows: each is run once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gpuhmm.coalesce.costs import COSTS
from gpuhmm.coalesce.device.config import DEVICES
from gpuhmm.coalesce.device.gpu import Gpu
from gpuhmm.coalesce.drivers import driver_named
from gpuhmm.coalesce.patterns.registry import workload
from gpuhmm.coalesce.run import CoalesceRun, coalesce
from gpuhmm.coalesce.spaces import spaces_over
from gpuhmm.coalesce.timeline import Timeline

#: What SC21 measured on: a Titan V whose host had touched the memory before.
DEVICE = "titan-v"
LAYOUT = "written"


@dataclass
class Runs:
    """Runs of patterns under drivers, kept by what determines them.  ``told`` hears what begins."""

    backend: str = "cpu"
    seed: int = 1
    told: Callable[[str], None] | None = None
    _done: dict[str, CoalesceRun] = field(default_factory=dict)

    def run(
        self,
        pattern: str,
        parameters: dict[str, Any] | None = None,
        driver: str = "uvm",
        settings: dict[str, object] | None = None,
        max_batches: int | None = None,
        layout: str = LAYOUT,
    ) -> CoalesceRun:
        """Return the run of a pattern on a Titan V."""
        key = repr((pattern, parameters, driver, settings, max_batches, layout))
        if key not in self._done:
            if self.told is not None:
                words = " ".join(f"{name}={value}" for name, value in (settings or {}).items())
                self.told(f"{pattern} under {driver} {words}".rstrip())
            work = workload(pattern, **(parameters or {}))
            device = Gpu(DEVICES[DEVICE], work.program, work.areas, self.seed)
            self._done[key] = coalesce(
                device,
                spaces_over(work.areas, layout),
                driver_named(driver, settings),
                costs=COSTS["sc21-titan-v"],
                backend=self.backend,
                timeline=Timeline(keep=False),
                max_batches=max_batches,
            )
        return self._done[key]
