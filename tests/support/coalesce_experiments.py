"""Experiments on the scripted device, made by functions that another process can import too."""

from __future__ import annotations

import numpy as np
from scripted_device import ScriptedDevice

from gpuhmm.coalesce.access import ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.areas import Area, DeviceAreas
from gpuhmm.coalesce.experiment import Experiment

BASE = 1 << 40
PAGE = 4096


class GpcDevice(ScriptedDevice):
    """The scripted device with a GPC for every 16 µTLBs."""

    def read(self, get, past):
        trace = super().read(get, past)
        trace.gpc = (trace.utlb // 16).astype(np.uint8)
        return trace


def random_accesses(experiment):
    """Return a device with two areas, a gap between them, and accesses drawn from the experiment's seed."""
    areas = DeviceAreas(
        [
            Area(0, BASE, BASE + 1024 * PAGE),
            Area(0, BASE + (1 << 30), BASE + (1 << 30) + 600 * PAGE),
        ]
    )
    rng = np.random.default_rng(experiment.seed)
    count = 300
    places = rng.integers(0, areas.npages, count) // 4 * 4
    kinds = np.where(rng.random(count) < 0.3, ACCESS_WRITE, ACCESS_READ)
    times = np.sort(rng.integers(0, 200_000, count))
    columns = (times, areas.addresses(places), kinds, rng.integers(0, 64, count))
    rows = [tuple(int(value) for value in row) for row in zip(*columns, strict=True)]
    return GpcDevice(areas, rows, buffer_entries=128)


def no_accesses(experiment):
    """Return a device that has nothing to do."""
    return GpcDevice(DeviceAreas([Area(0, BASE, BASE + PAGE)]), [])


def experiment(**more):
    """Return an experiment on the scripted device, on the cpu back end."""
    return Experiment("scripted", backend="cpu", make_device=random_accesses, **more)
