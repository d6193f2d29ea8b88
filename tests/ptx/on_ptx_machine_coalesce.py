"""Coalescing over compiled kernels; ``test_ptx_machine.py`` runs it on the PTX machine."""

import numpy as np
import pytest
from scripted_device import ScriptedDevice

from gpuhmm.coalesce.areas import Area, DeviceAreas
from gpuhmm.coalesce.drivers.registry import DRIVERS, driver_named
from gpuhmm.coalesce.run import coalesce
from gpuhmm.coalesce.spaces import spaces_over

BASE = 1 << 40
PAGES = 1536


@pytest.mark.parametrize("name", DRIVERS)
@pytest.mark.parametrize("layout", ["written", "untouched", "forked"])
def test_a_run_is_the_same_on_cuda(name, layout):
    rng = np.random.default_rng(7)
    accesses = [
        (int(time), BASE + 4096 * int(page), int(access), int(utlb))
        for time, page, access, utlb in zip(
            np.sort(rng.integers(0, 60_000, 60)),
            rng.integers(0, 40, 60) * 37,
            rng.integers(1, 3, 60),
            rng.integers(0, 4, 60),
            strict=True,
        )
    ]
    results = []
    for backend in ("reference", "cuda"):
        device = ScriptedDevice(DeviceAreas([Area(0, BASE, BASE + PAGES * 4096)]), accesses)
        run = coalesce(device, spaces_over(device.areas, layout), driver_named(name), backend=backend)
        assert run.finished
        assert run.backend == backend
        results.append((run.batches, device.areas.entries))
    (batches, entries), (other_batches, other_entries) = results
    assert np.array_equal(batches, other_batches)
    assert np.array_equal(entries, other_entries)
