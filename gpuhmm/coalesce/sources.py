"""Where the faults of an experiment come from: a recorded trace, or a pattern on a modelled GPU."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuhmm.coalesce.areas import DeviceAreas
from gpuhmm.coalesce.device.protocol import FaultingDevice
from gpuhmm.coalesce.drivers.settings import parse_size
from gpuhmm.coalesce.readers import read_trace

if TYPE_CHECKING:
    from gpuhmm.coalesce.device.config import DeviceConfig
    from gpuhmm.coalesce.patterns import Workload
    from gpuhmm.coalesce.trace import FaultTrace


def device_of(source: str, config: DeviceConfig, seed: int) -> FaultingDevice:
    """Return a new device: one that repeats a trace, or one that runs a pattern.

    ValueError for a source that is neither, for parameters that a pattern does not have, and for a trace that
    cannot be; OSError for one that cannot be read.
    """
    if is_pattern(source):
        from gpuhmm.coalesce.device.gpu import Gpu

        work = _workload(source)
        return Gpu(config, work.program, DeviceAreas(work.areas.areas), seed)
    from gpuhmm.coalesce.device.recorded import RecordedDevice

    settings = {name: getattr(config, name) for name in RECORDED_SETTINGS}
    return RecordedDevice(_trace(*_stamp(source)), **settings)


#: What of a device's configuration a recorded trace has.
RECORDED_SETTINGS = ("buffer_entries", "replay_latency_ns")


def check_device_settings(source: str, names: Iterable[str]) -> None:
    """ValueError for a setting that a recorded trace does not have; other errors as of :func:`device_of`."""
    if not is_pattern(source):
        for name in names:
            if name not in RECORDED_SETTINGS:
                known = ", ".join(RECORDED_SETTINGS)
                raise ValueError(f"of a device that repeats a trace one can set {known} (got {name!r})")


def is_pattern(source: str) -> bool:
    """Return True for a pattern and False for a trace file; errors as for :func:`device_of`."""
    from gpuhmm.coalesce.patterns import PATTERNS

    name = source.partition(":")[0]
    if name in PATTERNS:
        return True
    if not os.path.exists(source):
        raise ValueError(f"{source}: there is no such trace file and no such pattern ({', '.join(PATTERNS)})")
    if not os.path.isfile(source):
        raise ValueError(f"{source} must be a trace file or a pattern ({', '.join(PATTERNS)})")
    return False


def source_name(source: str) -> str:
    """Return a short name: that of the pattern, or of the file without its folder and suffix."""
    return source.partition(":")[0] if is_pattern(source) else Path(source).stem


def source_identity(source: str) -> dict[str, Any]:
    """Return what determines the faults: a pattern with all its parameters, or the digest of a trace."""
    if not is_pattern(source):
        return {"trace": _digest(*_stamp(source))}
    name, given = _pattern(source)
    return {"pattern": name, "parameters": {**_parameters(name), **given}}


def _parameters(name: str) -> dict[str, int]:
    from gpuhmm.coalesce.patterns import PATTERNS

    return PATTERNS[name].parameters


def _pattern(source: str) -> tuple[str, dict[str, int]]:
    """Return the name of a pattern and the parameters that were given."""
    name, _, words = source.partition(":")
    known = _parameters(name)
    given: dict[str, int] = {}
    for word in words.split(",") if words else []:
        parameter, _, value = (piece.strip() for piece in word.partition("="))
        if not value or parameter not in known:
            has = ", ".join(f"{one}={default}" for one, default in known.items())
            raise ValueError(f"{name} has the parameters {has} (got {word!r})")
        if parameter in given:
            raise ValueError(f"{parameter} of {name} is given more than once")
        try:
            given[parameter] = parse_size(value)
        except ValueError:
            raise ValueError(
                f"{parameter} of {name} must be a whole number, which may end in K, M or G (got {value!r})"
            ) from None
    return name, given


@lru_cache(maxsize=1)
def _workload(source: str) -> Workload:
    from gpuhmm.coalesce.patterns import PATTERNS

    name, given = _pattern(source)
    return PATTERNS[name](**given)


def _stamp(path: str) -> tuple[str, int, int]:
    """Return a file's path and what changes when it does."""
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4)
def _digest(path: str, changed: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1)
def _trace(path: str, changed: int, size: int) -> FaultTrace:
    return read_trace(path)
