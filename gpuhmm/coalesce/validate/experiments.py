"""The experiments behind the rows: each is run once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gpuhmm.coalesce.experiment import Experiment
from gpuhmm.coalesce.run import CoalesceRun


@dataclass
class Runs:
    """Runs of patterns on a Titan V whose host wrote the memory before, as SC21 measured; each is run once.

    ``told`` hears what begins.
    """

    backend: str = "cpu"
    seed: int = 1
    told: Callable[[str], None] | None = None
    _done: dict[Experiment, CoalesceRun] = field(default_factory=dict)

    def run(
        self,
        pattern: str,
        parameters: dict[str, Any] | None = None,
        driver: str = "uvm",
        settings: dict[str, object] | None = None,
        max_batches: int | None = None,
    ) -> CoalesceRun:
        """Return the run of a pattern, with the defaults of an :class:`Experiment` for all else."""
        words = ",".join(f"{name}={value}" for name, value in (parameters or {}).items())
        experiment = Experiment(
            source=f"{pattern}:{words}" if words else pattern,
            driver=driver,
            settings=tuple((settings or {}).items()),
            seed=self.seed,
            backend=self.backend,
            max_batches=max_batches,
        )
        if experiment not in self._done:
            if self.told is not None:
                what = " ".join(f"{name}={value}" for name, value in experiment.settings)
                self.told(f"{pattern} under {driver} {what}".rstrip())
            self._done[experiment] = experiment.run()
        return self._done[experiment]
