"""The batches of several runs as one table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.batches import BATCH_DTYPE
from gpuhmm.coalesce.run import CoalesceRun


def run_table(runs: Sequence[CoalesceRun]) -> npt.NDArray[np.void]:
    """Return a row a batch: ``driver``, ``batch`` (its number, uint32), and the fields of BATCH_DTYPE."""
    longest = max((len(run.driver) for run in runs), default=1)
    names = BATCH_DTYPE.names or ()
    fields = [("driver", f"U{longest}"), ("batch", np.uint32), *((name, BATCH_DTYPE[name]) for name in names)]
    table = np.empty(sum(len(run.batches) for run in runs), dtype=fields)
    at = 0
    for run in runs:
        part = table[at : at + len(run.batches)]
        part["driver"], part["batch"] = run.driver, np.arange(len(run.batches))
        for name in names:
            part[name] = run.batches[name]
        at += len(run.batches)
    return table
