"""The uvm driver where faults cannot be had, are no use, or are taken back at once."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_runs import BASE, FREE_OF_COST, PAGE, Interference, areas, device, invalidate, run, space_of

from gpuhmm.coalesce.access import ACCESS_PREFETCH, ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.device.recorded import RecordedDevice
from gpuhmm.coalesce.drivers.registry import driver_named
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.errors import LivelockError
from gpuhmm.mm.vma import VM_READ

PLAIN = {"prefetch": False, "coalesce": False}


def recorded(rows, made=None):
    """A device that repeats (page, access, µTLB), all at once."""
    page, access, utlb = zip(*rows, strict=True)
    va = BASE + np.array(page, dtype=np.uint64) * np.uint64(PAGE)
    return RecordedDevice(FaultTrace.of(va=va, access=access, utlb=utlb), made or areas(1024))


def test_a_read_behind_a_write_that_is_forbidden_is_serviced():
    a_device = device([(0, 1, ACCESS_WRITE, 1), (0, 1, ACCESS_READ, 2)])
    spaces = space_of(a_device)
    spaces[0].mprotect(BASE, BASE + 512 * PAGE, VM_READ)
    result = run(a_device, "uvm", PLAIN, spaces=spaces)
    assert result.totals["cancelled"] == 1
    assert result.totals["hmm_calls"] == 1


@pytest.mark.parametrize(("hole", "counted"), [(True, 5), (False, 3)])
def test_prefetches_that_follow_an_invalid_one_of_the_page_are_counted(hole, counted):
    """Where no VMA is, the driver counts those that follow twice."""
    for batch, enabled in ((counted, False), (counted * 3 // 2 + 1, True)):
        a_device = recorded([(3, ACCESS_PREFETCH, utlb) for utlb in range(3)])
        spaces = space_of(a_device)
        if hole:
            spaces[0].munmap(BASE, BASE + 512 * PAGE)
        else:
            spaces[0].mprotect(BASE, BASE + 512 * PAGE, 0)
        driver = driver_named("uvm", PLAIN | {"batch": batch})
        result = run(a_device, driver, spaces=spaces)
        assert result.finished
        assert result.totals["cancelled"] == 0
        assert driver.prefetch_faults.enabled == enabled


def test_cancelling_flushes_with_a_fresh_put():
    """Nine faults come while the first batch is served."""
    late = [(20_000, page, ACCESS_READ, 1) for page in range(600, 609)]
    a_device = device([(0, 1, ACCESS_READ, 1), *late])
    spaces = space_of(a_device)
    spaces[0].munmap(BASE, BASE + 512 * PAGE)
    result = run(a_device, "uvm", PLAIN | {"replay": "batch"}, spaces=spaces)
    assert result.batches["flushed"].tolist() == [9, 0]
    assert result.totals["replays"] == result.device.replays == 2
    assert result.totals["pages_mapped"] == 9


def test_the_replay_of_a_cancel_is_none_that_the_service_counts():
    a_device = device([(0, 1, ACCESS_READ, 1)])
    spaces = space_of(a_device)
    spaces[0].munmap(BASE, BASE + 512 * PAGE)
    result = run(a_device, "uvm", PLAIN, spaces=spaces)
    assert result.totals["replays"] == result.device.replays == 2


def test_what_holds_pages_off_ends_where_nothing_takes_time():
    a_device = device([(100_000 * n, 3, ACCESS_READ, 0) for n in range(40)])
    spaces = space_of(a_device)

    class Taker:
        """Takes page 3 away every 150 µs."""

        due = 50_000

        def run(self, now):
            while self.due <= now:
                self.due += 150_000 if self.due < 4_000_000 else 1 << 60
                invalidate(spaces[0], 3)
            return []

    result = run(a_device, "uvm", spaces=spaces, cpu=Taker(), costs=FREE_OF_COST)
    assert result.finished
    assert 0 < result.totals["throttled"] < 40


def test_a_block_that_is_always_invalidated_is_a_livelock():
    a_device = device([(0, 3, ACCESS_READ, 0)])
    spaces = space_of(a_device)
    cpu = Interference(lambda n: invalidate(spaces[0], 9))
    with pytest.raises(LivelockError, match="1000 times in a row"):
        run(a_device, "uvm", spaces=spaces, cpu=cpu)
