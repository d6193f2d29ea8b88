"""Sweeps over settings, point by point, that go on where they were interrupted."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.axes import Axes, check_axes
from gpuhmm.coalesce.experiment import Experiment
from gpuhmm.errors import LivelockError
from gpuhmm.results.columns import table_of
from gpuhmm.results.files import check_suffix, write_results
from gpuhmm.results.partial_file import whole_file


@dataclass(frozen=True)
class Sweep:
    """The points of a sweep, the last axis fastest.

    ``rows`` has a dict for each: the value of each axis, and what was counted
    (:func:`gpuhmm.coalesce.batches.totals`, the counters of the device as ``device_*``, ``model_ns``,
    ``finished``, ``backend``, ``seconds`` of the run that made it, and ``livelock``, empty but for a driver
    that came to no end).  ``ran`` counts the points that were run now, ``found`` those that were there.
    """

    experiment: Experiment
    axes: Axes
    rows: list[dict[str, Any]]
    ran: int
    found: int

    def table(self) -> npt.NDArray[np.void]:
        """Return the points as a structured array, a column a key of ``rows``; words are strings."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        return table_of({name: _column([row.get(name) for row in self.rows]) for name in names})

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the points to a ``.parquet``, ``.npy`` or ``.json`` file, whole or not at all."""
        summary: dict[str, Any] = {"experiment": self.experiment.identity(), "axes": self.axes}
        if check_suffix(path) == ".json":
            summary["points"] = self.rows
        write_results(path, self.table(), summary=summary)


def _column(values: list[Any]) -> npt.NDArray[Any]:
    if all(isinstance(value, bool) for value in values):
        return np.array(values, dtype=np.bool_)
    if all(isinstance(value, int) for value in values):
        return np.array(values, dtype=np.int64)
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else str(value) for value in values], dtype=np.str_)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def sweep(
    experiment: Experiment,
    axes: Mapping[str, Sequence[str | int]],
    folder: str | os.PathLike[str],
    *,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Run an experiment for every combination of the values of ``axes``, and return what was counted.

    An axis is a setting of the driver, or with ``device.`` before it one of the device.  Each point is saved
    in ``folder`` (``KEY.json``) as soon as it is done, by everything that determines it
    (:meth:`Experiment.key`): what is there already is not run again, whatever sweep it comes from, and an
    interruption costs the points that were running.  A file that is not whole counts as none.  ``jobs``
    processes run points at the same time.  ``progress`` hears how many points are done, and of how many.

    ValueError for axes and settings that cannot be, before anything runs; OSError for a folder that cannot
    be written.
    """
    count = check_axes(axes)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1 (got {jobs})")
    kept = {name: tuple(values) for name, values in axes.items()}
    points = [dict(zip(kept, values, strict=True)) for values in itertools.product(*kept.values())]
    experiments = [
        experiment.with_settings({name: str(value) for name, value in point.items()}) for point in points
    ]
    for one in experiments:
        one.check()
    keys = [one.key() for one in experiments]
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"{target} cannot be a folder of points: {error.strerror}") from None
    done = {key: row for key in dict.fromkeys(keys) if (row := _read(target, key)) is not None}
    waiting = {key: one for key, one in zip(keys, experiments, strict=True) if key not in done}
    found = sum(key in done for key in keys)
    times, heard = Counter(keys), found
    if progress is not None:
        progress(heard, count)
    for key, row in _run_all(target, waiting, jobs):
        done[key] = row
        heard += times[key]
        if progress is not None:
            progress(heard, count)
    rows = [{**point, **done[key]} for point, key in zip(points, keys, strict=True)]
    return Sweep(experiment, kept, rows, len(waiting), found)


def _run_all(folder: Path, waiting: dict[str, Experiment], jobs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if jobs == 1 or len(waiting) < 2:
        for key, experiment in waiting.items():
            yield key, run_point(folder, key, experiment)
        return
    # Threads of compiled code do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(waiting)), context, initializer=_begin_worker) as pool:
        running = {pool.submit(run_point, folder, key, one): key for key, one in waiting.items()}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Let Ctrl-C end this process without words, and end it when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_point(folder: Path, key: str, experiment: Experiment) -> dict[str, Any]:
    """Run one point, save it, and return what was counted."""
    try:
        run = experiment.run()
    except LivelockError as error:
        row: dict[str, Any] = {"livelock": str(error)}
    else:
        row = {
            **run.totals,
            **{f"device_{name}": value for name, value in asdict(run.device).items()},
            "model_ns": run.model_ns,
            "finished": run.finished,
            "backend": run.backend,
            "seconds": run.seconds,
            "livelock": "",
        }
    saved = {"key": key, "experiment": experiment.identity(), "row": row}
    with whole_file(_file(folder, key)) as partial:
        partial.write_text(json.dumps(saved) + "\n")
    return row


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def _read(folder: Path, key: str) -> dict[str, Any] | None:
    """Return what was counted for a point, or None where there is no whole file of it."""
    try:
        saved = json.loads(_file(folder, key).read_text())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(saved, dict) or saved.get("key") != key or not isinstance(saved.get("row"), dict):
        return None
    row: dict[str, Any] = saved["row"]
    return row
