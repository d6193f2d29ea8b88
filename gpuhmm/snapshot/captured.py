"""What a capture knows besides its address space: the process or dump, its mappings by name, its windows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from gpuhmm.capture.mapping import Mapping
from gpuhmm.capture.record import Capture, Identity, LiveProcess
from gpuhmm.errors import SnapshotError
from gpuhmm.memory.space import AddressSpace
from gpuhmm.snapshot.parts import Arrays

_SCALARS = ("start", "end", "pfns_real", "seconds", "notes", "write_rule", "source", "kernel_why")
_ARRAYS = ("windows", "windows_with_swap")
#: Of a live process, beside its identity.
_PROCESS = ("kernel_release", "left_out", "changed", "pagemap_scan", "kpageflags")


def capture_parts(capture: Capture) -> tuple[dict[str, Any], Arrays]:
    """Return the scalars by part and the arrays of a capture, without those of its space."""
    parts: dict[str, Any] = {
        "origin": capture.origin,
        "capture": {
            **{name: getattr(capture, name) for name in _SCALARS},
            "mappings": [asdict(mapping) for mapping in capture.mappings],
            "resident": list(capture.resident),
            **({} if capture.process is None else asdict(capture.process)),
        },
    }
    return parts, {name: getattr(capture, name) for name in _ARRAYS}


def capture_of_parts(parts: dict[str, Any], arrays: Arrays, space: AddressSpace) -> Capture:
    """Return the capture that :func:`capture_parts` was given.  SnapshotError for parts that are none."""
    try:
        fields = dict(parts["capture"])
        for name in _ARRAYS:
            if arrays[name].dtype != np.int64 or arrays[name].ndim != 1:
                raise ValueError(f"{name} must be a one-dimensional array of int64")
        mappings = [Mapping(**mapping) for mapping in fields["mappings"]]
        resident = [int(count) for count in fields["resident"]]
        if len(resident) != len(mappings):
            raise ValueError("every mapping must have a count of resident pages")
        fields.setdefault("kernel_why", "")  # snapshots from before a kernel was chosen
        known: dict[str, Any] = {name: fields[name] for name in _SCALARS}
        known.update({name: arrays[name] for name in _ARRAYS})
        return Capture(
            space=space,
            mappings=mappings,
            resident=resident,
            origin=dict(parts["origin"]),
            process=_process(fields),
            **known,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SnapshotError(f"the snapshot holds no capture: {error}") from None


def _process(fields: dict[str, Any]) -> LiveProcess | None:
    """Return the live process that was read, if it was one; a dump was once saved with a process 0."""
    identity = dict(fields.get("identity") or {})
    if not identity.get("pid"):
        return None
    return LiveProcess(Identity(**identity), **{name: fields[name] for name in _PROCESS})
