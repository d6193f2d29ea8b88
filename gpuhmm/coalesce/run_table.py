"""The batches of several runs, or of several rules, as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.batches import BATCH_DTYPE
from gpuhmm.coalesce.run import CoalesceRun
from gpuhmm.results.columns import table_of


def run_table(runs: Sequence[CoalesceRun]) -> npt.NDArray[np.void]:
    """Return a row a batch: ``driver``, ``batch`` (its number, uint32), and the fields of BATCH_DTYPE."""
    names = BATCH_DTYPE.names or ()
    return numbered_batches("driver", [(run.driver, {n: run.batches[n] for n in names}) for run in runs])


def numbered_batches(
    title: str, parts: Sequence[tuple[str, Mapping[str, npt.NDArray[Any]]]]
) -> npt.NDArray[np.void]:
    """Return the rows of at least one part, one after the other.

    Of each part its name in column ``title``, the number of the row in ``batch``, uint32, and its columns,
    which all parts have.
    """
    lengths = [len(next(iter(columns.values()))) for _, columns in parts]
    numbers = [np.arange(length, dtype=np.uint32) for length in lengths]
    table = {
        title: np.repeat([name for name, _ in parts], lengths),
        "batch": np.concatenate(numbers),
        **{name: np.concatenate([columns[name] for _, columns in parts]) for name in parts[0][1]},
    }
    return table_of(table)
