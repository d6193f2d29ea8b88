"""The loop around a driver: counts worked out by hand, errors, invalidations, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_device import ScriptedDevice

from gpuhmm.coalesce.access import ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.areas import Area, DeviceAreas
from gpuhmm.coalesce.cpu_side import CpuActivity
from gpuhmm.coalesce.drivers.registry import driver_named
from gpuhmm.coalesce.run import coalesce
from gpuhmm.coalesce.spaces import spaces_over
from gpuhmm.errors import LivelockError
from gpuhmm.mirror.page_table import DPT_PFN, DPT_VALID, DPT_WRITE
from gpuhmm.mm.vma import VM_READ, VM_WRITE

BASE = 1 << 40
PAGE = 4096


def areas(npages=2048):
    return DeviceAreas([Area(0, BASE, BASE + npages * PAGE)])


def device(accesses, npages=2048, **more):
    rows = [(time, BASE + page * PAGE, access, utlb) for time, page, access, utlb in accesses]
    return ScriptedDevice(areas(npages), rows, **more)


def run(a_device, layout="written", driver=None, **more):
    chosen = driver_named("free", driver)
    return coalesce(a_device, spaces_over(a_device.areas, layout), chosen, backend="cpu", **more)


def test_counts_of_one_batch():
    # Page 3 three times, by µTLB 1 twice; page 600 in the next VA block.
    accesses = [(0, 3, 1, 1), (0, 3, 1, 1), (0, 3, 1, 2), (0, 600, 2, 2)]
    a_device = device(accesses)
    result = run(a_device)
    assert result.finished
    (batch,) = result.batches
    expected = {"raw": 4, "unique": 2, "same_utlb": 1, "cross_utlb": 1, "covered": 0, "va_blocks": 2}
    expected |= {"most_in_block": 1, "hmm_calls": 2, "handle_mm_faults": 0, "pages_asked": 2}
    expected |= {"pages_mapped": 2, "pages_unasked": 0, "replays": 1, "ebusy": 0, "cancelled": 0}
    assert {name: int(batch[name]) for name in expected} == expected
    assert result.totals["faults_per_block"] == 2.0


def test_the_device_gets_what_the_page_table_holds():
    a_device = device([(0, page, ACCESS_READ, 0) for page in range(8)])
    spaces = spaces_over(a_device.areas, "written")
    coalesce(a_device, spaces, driver_named("free"), backend="cpu")
    for page in range(8):
        pte = spaces[0].entry(BASE + page * PAGE, 1)
        entry = int(a_device.areas.entries[page])
        assert entry & int(DPT_PFN) == (pte >> 12) & ((1 << 40) - 1)
        assert entry & int(DPT_VALID)
        assert bool(entry & int(DPT_WRITE)) == bool(pte & 2)
    assert not a_device.areas.entries[8:].any()


def test_whole_windows_map_what_nobody_asked_for():
    result = run(device([(0, 5, ACCESS_READ, 0)]), "untouched", {"whole_window": True, "window": "64K"})
    assert result.totals["pages_mapped"] == 16
    assert result.totals["pages_unasked"] == 15
    assert result.totals["handle_mm_faults"] == 16


def test_one_missing_page_faults_the_rest_of_its_pmd():
    """hmm_range_fault faults to the end of the extent that the range cuts out."""
    result = run(device([(0, 5, ACCESS_READ, 0)]), "untouched", {"window": "2M"})
    assert result.totals["handle_mm_faults"] > 1
    assert result.totals["pages_mapped"] == 1


def test_write_requests_over_copy_on_write_retry():
    result = run(device([(0, page, ACCESS_WRITE, 0) for page in range(4)]), "forked")
    assert result.totals["ebusy"] + result.totals["read_retries"] >= 1
    assert result.totals["invalidations"] >= 1
    assert result.finished


@pytest.mark.parametrize(("late", "cancelled"), [("cancel", 1), ("replay", 0)])
def test_a_range_that_stays_stale_is_cancelled_or_left_for_the_replay(late, cancelled):
    accesses = [(0, 1, ACCESS_WRITE, 0)]  # copies, and so makes its own first try stale
    result = run(device(accesses), "forked", {"max_tries": 1, "late": late})
    assert result.finished
    assert result.totals["ebusy"] + result.totals["read_retries"] == 1
    assert result.totals["cancelled"] == cancelled
    assert result.totals["pages_mapped"] == 1 - cancelled


def test_requests_from_the_vma_copy_what_was_only_read():
    by_access = run(device([(0, 1, ACCESS_READ, 0)]), "private-file")
    by_vma = run(device([(0, 1, ACCESS_READ, 0)]), "private-file", {"request": "vma"})
    assert by_access.totals["handle_mm_faults"] == 0
    assert by_vma.totals["handle_mm_faults"] >= 1


def test_batches_are_cut_and_the_rest_is_flushed():
    accesses = [(0, page, ACCESS_READ, 0) for page in range(10)]
    flushed = run(device(accesses), driver={"batch": 4})
    assert [int(batch["raw"]) for batch in flushed.batches] == [4, 4, 2]
    assert [int(batch["flushed"]) for batch in flushed.batches] == [6, 2, 0]
    kept = run(device(accesses), driver={"batch": 4, "replay": "once"})
    assert kept.totals["flushed"] == 0
    assert kept.device.replays == 1
    assert kept.totals["raw"] == 10


def test_a_full_buffer_overflows_and_nothing_is_lost():
    result = run(device([(0, page, ACCESS_READ, 0) for page in range(10)], buffer_entries=4))
    assert result.finished
    assert result.device.overflows > 0
    assert result.totals["overflows"] == result.device.overflows
    assert result.totals["pages_mapped"] == 10


def test_faults_without_a_vma_are_cancelled():
    a_device = device([(0, 1, ACCESS_READ, 0), (0, 700, ACCESS_READ, 0)])
    spaces = spaces_over(a_device.areas, "written")
    spaces[0].munmap(BASE + 512 * PAGE, BASE + 1024 * PAGE)
    result = coalesce(a_device, spaces, driver_named("free"), backend="cpu")
    assert result.finished
    assert result.totals["cancelled"] == 1
    assert result.totals["pages_mapped"] == 1


def test_writes_where_nothing_may_be_written_are_cancelled():
    a_device = device([(0, 1, ACCESS_WRITE, 0), (0, 600, ACCESS_WRITE, 0)])
    spaces = spaces_over(a_device.areas, "written")
    spaces[0].mprotect(BASE, BASE + 512 * PAGE, 1)
    result = coalesce(a_device, spaces, driver_named("free"), backend="cpu")
    assert result.totals["cancelled"] == 1
    assert result.totals["pages_mapped"] == 1


@pytest.mark.parametrize("operation", ["dontneed", "protect", "migrate", "swap-out"])
def test_the_cpu_takes_pages_away(operation):
    accesses = [(1000 * n, n % 64, ACCESS_READ, 0) for n in range(4000)]
    a_device = device(accesses, npages=64)
    spaces = spaces_over(a_device.areas, "written")
    cpu = CpuActivity(spaces, a_device.areas, per_ms=100, operation=operation, seed=1)
    result = coalesce(a_device, spaces, driver_named("free"), backend="cpu", cpu=cpu)
    assert result.finished
    assert result.totals["invalidated_pages"] > 0
    assert result.totals["pages_mapped"] > 64
    # What the device holds at the end is what the page table says.
    for page in np.flatnonzero(a_device.areas.entries):
        pte = spaces[0].entry(BASE + int(page) * PAGE, 1)
        assert pte & 1
        assert int(a_device.areas.entries[page]) & int(DPT_PFN) == (pte >> 12) & ((1 << 40) - 1)


def test_a_driver_that_never_replays_is_found():
    class Lazy:
        name, source, settings = "lazy", "none", driver_named("free").settings

        def begin(self, service):
            pass

        def serve(self, service):
            service.begin_batch(service.fetch(service.read_put()))
            service.end_batch()

    a_device = device([(0, 1, ACCESS_READ, 0)])
    with pytest.raises(LivelockError, match="1 accesses stalled"):
        coalesce(a_device, spaces_over(a_device.areas), Lazy(), backend="cpu")


def test_a_driver_that_never_maps_is_found():
    class Futile:
        name, source, settings = "futile", "none", driver_named("free").settings

        def begin(self, service):
            pass

        def serve(self, service):
            service.begin_batch(service.fetch(service.read_put()))
            service.replay()
            service.end_batch()

    a_device = device([(0, 1, ACCESS_READ, 0)])
    a_device._make = lambda access, make=a_device._make: (
        make(access),
        setattr(a_device.counters, "accesses", 0),
    )
    with pytest.raises(LivelockError, match="without mapping"):
        coalesce(a_device, spaces_over(a_device.areas), Futile(), backend="cpu")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": "3K"}, "power of two"),
        ({"window": "3M"}, "power of two"),
        ({"batch": "many"}, "whole number"),
        ({"batch": -1}, "0 \\(the whole buffer\\) or more"),
        ({"duplicates": "some"}, "one of page, none"),
        ({"request": "both"}, "one of access, vma"),
        ({"whole_window": "perhaps"}, "on or off"),
        ({"late": "never"}, "one of cancel, replay"),
        ({"max_tries": -1}, "0 \\(any number\\) or more"),
        ({"colour": "red"}, "no setting 'colour'"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        driver_named("free", settings)


def test_an_unknown_driver():
    with pytest.raises(ValueError, match=r"must be one of .*free"):
        driver_named("windows")


def test_areas_must_fit_their_spaces():
    a_device = device([(0, 1, ACCESS_READ, 0)])
    with pytest.raises(ValueError, match="needs space 0"):
        coalesce(a_device, [], driver_named("free"), backend="cpu")


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ([Area(0, 4096, 4096)], "not empty"),
        ([Area(0, 4096, 8000)], "aligned"),
        ([Area(0, 4096, 12288), Area(0, 8192, 16384)], "apart"),
        ([Area(1, 4096, 8192), Area(0, 8192, 16384)], "sorted"),
        ([Area(0, 0, 1 << 41)], "at most"),
    ],
)
def test_bad_areas(listed, words):
    with pytest.raises(ValueError, match=words):
        DeviceAreas(listed)


@pytest.mark.parametrize("layout", ["written", "private-file", "untouched-huge"])
def test_what_the_cpu_protects_is_one_area_afterwards(layout):
    made = areas(64)
    (space,) = spaces_over(made, layout)
    before = list(space.vmas)
    CpuActivity([space], made, per_ms=100, operation="protect", npages=3).run(10**7)
    assert list(space.vmas) == before
    assert [vma.pgoff for vma in space.vmas] == [vma.pgoff for vma in before]


def test_the_cpu_gives_back_what_areas_had():
    made = areas(64)
    (space,) = spaces_over(made, "written")
    space.mprotect(BASE + 16 * PAGE, BASE + 32 * PAGE, VM_READ)
    space.mprotect(BASE + 32 * PAGE, BASE + 48 * PAGE, 0)
    before = list(space.vmas)
    CpuActivity([space], made, per_ms=100, operation="protect", npages=30).run(10**6)
    assert list(space.vmas) == before


def test_numbers_of_spaces_that_no_area_uses_cost_nothing():
    made = DeviceAreas([Area(3, BASE, BASE + PAGE), Area(65535, BASE, BASE + PAGE)])
    spaces = spaces_over(made)
    assert len(spaces) == 65536
    assert len({id(space) for space in spaces}) == 3


@pytest.mark.parametrize("window", ["4K", "64K", "2M", "4M"])
def test_the_free_driver_asks_for_huge_pages_of_a_pool(window):
    a_device = device([(0, 5, ACCESS_READ, 0), (0, 700, ACCESS_WRITE, 0)])
    spaces = spaces_over(a_device.areas, "untouched")
    spaces[0].munmap(BASE, BASE + 2048 * PAGE)
    spaces[0].mmap(BASE, BASE + 2048 * PAGE, VM_READ | VM_WRITE, page_shift=21)
    chosen = driver_named("free", {"window": window})
    result = coalesce(a_device, spaces, chosen, backend="cpu", max_batches=5)
    assert result.finished
    assert result.totals["pages_mapped"] == 2
