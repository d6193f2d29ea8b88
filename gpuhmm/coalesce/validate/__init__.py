"""Published measurements of fault coalescing, compared with what the model gives."""

from __future__ import annotations

from collections.abc import Callable

from gpuhmm.coalesce.validate.experiments import Runs
from gpuhmm.coalesce.validate.row import Row
from gpuhmm.coalesce.validate.rules import rule_rows
from gpuhmm.coalesce.validate.sc21 import limit_rows, prefetch_rows, size_rows, table_rows
from gpuhmm.coalesce.validate.stacks import calibrated_rows, unbatched_rows


def validate(
    *,
    exact_only: bool = False,
    backend: str = "cpu",
    seed: int = 1,
    told: Callable[[str], None] | None = None,
) -> list[Row]:
    """Return every row, published value next to the model's; ``told`` hears which experiment begins.

    ``exact_only`` leaves out what takes minutes.  ``seed`` is that of the device and of random draws.
    """
    runs = Runs(backend, seed, told)
    rows = [*rule_rows(seed), *limit_rows(runs)]
    if not exact_only:
        rows += [
            *table_rows(runs),
            *size_rows(runs),
            *prefetch_rows(runs),
            *unbatched_rows(runs),
            *calibrated_rows(),
        ]
    return rows


__all__ = ["Row", "validate"]
