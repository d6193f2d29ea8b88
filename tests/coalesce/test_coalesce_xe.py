"""The rules of xe and of drm_gpusvm, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_runs import (
    BASE,
    FREE_OF_COST,
    PAGE,
    Interference,
    areas,
    asked,
    device,
    invalidate,
    mapped,
    run,
    space_of,
)

from gpuhmm.coalesce.access import ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.drivers.gpusvm import GpuSvm
from gpuhmm.coalesce.drivers.registry import driver_named
from gpuhmm.coalesce.drivers.xe import dma_mappings
from gpuhmm.coalesce.service import FaultService
from gpuhmm.errors import LivelockError
from gpuhmm.memory.fault.burst import handle_mm_fault_range
from gpuhmm.mm.handler import FAULT_FLAG_WRITE
from gpuhmm.mm.profile import V5_18
from gpuhmm.mm.vma import VM_PFNMAP, VM_READ, VM_WRITE

READ, WRITE = ACCESS_READ, ACCESS_WRITE
MS = 1_000_000
NODE = (1 << 29) // PAGE  # pages of a notifier


def touch(mm, first, past):
    """The CPU writes pages."""
    vma = mm.vmas.lookup(BASE + first * PAGE)
    handle_mm_fault_range(mm, vma, BASE + first * PAGE, BASE + past * PAGE, FAULT_FLAG_WRITE)


def counted(driver):
    return {name: count for name, count in driver.counts.items() if count and name != "dma_mappings"}


def test_the_largest_chunk_that_fits():
    driver = driver_named("xe")
    a_device = device([(0, page, READ, 0) for page in (5, 6, 700, 5)])
    result = run(a_device, driver)
    assert asked(result) == [(0, 512), (512, 1024)]
    assert mapped(a_device) == list(range(1024))
    assert counted(driver) == {"fault_2M": 4, "valid_2M": 2, "get_pages_2M": 2}
    assert result.totals["filtered"] == 2


def test_every_page_of_a_chunk_is_faulted_in_for_writing():
    assert run(device([(0, 1, READ, 0)]), "xe", spaces="untouched").totals["handle_mm_faults"] == 512
    assert run(device([(0, 1, READ, 0)]), "xe", spaces="private-file").totals["handle_mm_faults"] == 512
    reading = run(device([(0, 1, READ, 0)]), "xe", {"read_only": "on"}, spaces="private-file")
    assert (reading.totals["handle_mm_faults"], reading.totals["pages_mapped"]) == (0, 512)


def test_chunks_must_fit_their_vma():
    driver = driver_named("xe")
    a_device = device([(time, page, READ, 0) for time, page in enumerate((200, 103, 111, 112, 511, 600))])
    spaces = space_of(a_device)
    spaces[0].munmap(BASE, BASE + 100 * PAGE)
    result = run(a_device, driver, spaces=spaces)
    # [96, 112) begins before the VMA; 112 is the first multiple of 16 in it.  64K is looked at first.
    found = [(192, 208), (192, 208), (103, 104), (111, 112), (112, 128), (112, 128), (496, 512), (496, 512)]
    assert asked(result) == [*found, (512, 1024)]
    assert counted(driver) == {
        "fault_2M": 1,
        "fault_64K": 3,
        "fault_4K": 2,
        "get_pages_2M": 1,
        "get_pages_64K": 3,
        "get_pages_4K": 2,
    }


@pytest.mark.parametrize(
    ("present", "check", "chunk"),
    [
        ((0, 0), "64K", (17, 18)),
        ((16, 32), "64K", (16, 32)),
        ((16, 31), "64K", (17, 18)),
        ((0, 0), "0", (16, 32)),
        ((0, 0), "4K", (16, 32)),
    ],
)
def test_small_chunks_are_taken_only_where_every_page_is_present(present, check, chunk):
    a_device = device([(0, 17, READ, 0)], npages=64)
    spaces = space_of(a_device, "untouched")
    if present[1]:
        touch(spaces[0], *present)
    result = run(a_device, "xe", {"check_pages": check}, spaces=spaces)
    # Looking is a call, too, and asks for nothing.
    looked = check == "64K"
    assert asked(result) == [(16, 32)] * looked + [chunk]
    assert result.totals["hmm_calls"] == 1 + looked
    assert result.totals["pages_mapped"] == chunk[1] - chunk[0]


def test_two_megabytes_are_looked_at_only_if_the_threshold_says_so():
    small = run(device([(0, 17, READ, 0)]), "xe", {"check_pages": "2M"}, spaces="untouched")
    assert small.totals["pages_mapped"] == 1
    assert run(device([(0, 17, READ, 0)]), "xe", spaces="untouched").totals["pages_mapped"] == 512


def test_chunks_do_not_overlap_ranges():
    a_device = device([(0, 17, READ, 0), (10 * MS, 18, READ, 0), (10 * MS, 33, READ, 0)], npages=64)
    spaces = space_of(a_device, "untouched")
    cpu = Interference(lambda n: touch(spaces[0], 0, 64) if n == 8 else None, due=5 * MS)
    driver = driver_named("xe")
    run(a_device, driver, spaces=spaces, cpu=cpu)
    # By the second fault every page is present, but 17 is a range of its own: 18 gets one as well.
    assert mapped(a_device) == [17, 18, *range(32, 48)]
    assert (driver.counts["get_pages_4K"], driver.counts["get_pages_64K"]) == (2, 1)


def test_the_largest_chunk_can_be_limited():
    for largest, chunk in (("2M", (0, 512)), ("64K", (16, 32)), ("4K", (17, 18))):
        assert asked(run(device([(0, 17, READ, 0)]), "xe", {"largest": largest}))[-1] == chunk


def test_one_invalidated_page_takes_its_whole_range():
    a_device = device([(0, 5, READ, 0), (0, 600, READ, 0), (10 * MS, 9, READ, 0), (10 * MS, 601, READ, 0)])
    spaces = space_of(a_device)
    cpu = Interference(lambda n: invalidate(spaces[0], 7) if n == 7 else None, due=5 * MS)
    driver = driver_named("xe")
    result = run(a_device, driver, spaces=spaces, cpu=cpu)
    assert (result.totals["invalidations"], result.totals["invalidated_pages"]) == (1, 512)
    assert asked(result) == [(0, 512), (512, 1024), (0, 512)]
    assert (driver.counts["fault_2M"], driver.counts["valid_2M"]) == (3, 0)


@pytest.mark.parametrize(("other", "retries"), [(NODE - 1, 1), (NODE, 0)])
def test_ranges_of_half_a_gigabyte_share_a_notifier(other, retries):
    """An invalidation of the other end makes the walk stale; behind the end it does not."""
    a_device = device([(0, 1, READ, 0)])
    spaces = space_of(a_device)
    cpu = Interference(lambda n: invalidate(spaces[0], other) if n == 3 else None)
    result = run(a_device, "xe", spaces=spaces, cpu=cpu)
    assert result.totals["read_retries"] == retries
    assert (result.totals["hmm_calls"], result.totals["batches"]) == (1 + retries, 1)
    assert result.totals["invalidated_pages"] == 0


def test_two_nodes_have_two_notifiers():
    a_device = device([(0, page, READ, 0) for page in (1, 600, NODE + 1)], npages=areas(2048, 2048))
    spaces = space_of(a_device)
    run(a_device, "xe", spaces=spaces)
    found = [(sub.start, sub.end) for sub in spaces[0].subscriptions.intervals]
    assert found == [(BASE, BASE + (1 << 29)), (BASE + (1 << 29), BASE + (1 << 30))]


def test_smaller_notifiers():
    a_device = device([(0, page, READ, 0) for page in (1, 600)])
    spaces = space_of(a_device)
    run(a_device, "xe", {"notifier_size": "2M"}, spaces=spaces)
    assert len(spaces[0].subscriptions.intervals) == 2


def test_ebusy_reads_the_sequence_again():
    a_device = device([(0, 1, READ, 0)])
    spaces = space_of(a_device)
    cpu = Interference(lambda n: invalidate(spaces[0], 1) if n == 2 else None)
    result = run(a_device, "xe", spaces=spaces, cpu=cpu)
    assert (result.totals["ebusy"], result.totals["hmm_calls"], result.totals["batches"]) == (1, 2, 1)


def test_a_second_of_invalidations_ends_the_access():
    a_device = device([(0, 1, READ, 0)])
    spaces = space_of(a_device)
    cpu = Interference(lambda n: invalidate(spaces[0], 1))
    costs = FREE_OF_COST.with_times(block=100 * MS)
    result = run(a_device, "xe", spaces=spaces, cpu=cpu, costs=costs)
    assert (result.totals["ebusy"], result.totals["cancelled"]) == (11, 1)
    assert result.finished


def test_addresses_without_a_vma_are_cancelled():
    a_device = device([(0, page, READ, utlb) for page in (1, 700) for utlb in (0, 1)])
    spaces = space_of(a_device)
    spaces[0].munmap(BASE + 512 * PAGE, BASE + 1024 * PAGE)
    result = run(a_device, "xe", spaces=spaces)
    assert result.finished
    assert (result.totals["cancelled"], result.totals["pages_mapped"]) == (1, 512)


def test_even_reads_of_what_may_only_be_read_fail():
    a_device = device([(0, 1, READ, 0), (0, 600, READ, 0)])
    spaces = space_of(a_device)
    spaces[0].mprotect(BASE, BASE + 512 * PAGE, VM_READ)
    result = run(a_device, "xe", spaces=spaces)
    assert (result.totals["cancelled"], result.totals["pages_mapped"]) == (1, 512)


def test_a_device_that_may_only_read_writes_nothing():
    result = run(device([(0, 1, READ, 0), (0, 2, WRITE, 0)]), "xe", {"read_only": "on"})
    assert (result.totals["cancelled"], result.totals["pages_mapped"]) == (1, 512)


def test_pages_that_can_never_be_had_are_tried_for_ever():
    a_device = device([(0, 1, READ, 0)])
    spaces = space_of(a_device)
    spaces[0].munmap(BASE, BASE + 2048 * PAGE)
    spaces[0].mmap(BASE, BASE + 2048 * PAGE, VM_READ | VM_WRITE | VM_PFNMAP)
    with pytest.raises(LivelockError, match="again without end"):
        run(a_device, "xe", spaces=spaces)


def test_what_is_unmapped_in_part_goes_as_a_whole():
    a_device = device([(0, 5, READ, 0), (10 * MS, 9, READ, 0), (10 * MS, 300, READ, 0)])
    spaces = space_of(a_device)
    cpu = Interference(
        lambda n: spaces[0].munmap(BASE + 100 * PAGE, BASE + 200 * PAGE) if n == 4 else None, due=5 * MS
    )
    result = run(a_device, "xe", spaces=spaces, cpu=cpu)
    assert result.totals["invalidated_pages"] == 512
    assert mapped(a_device) == [*range(16), *range(288, 304)]


def test_a_notifier_goes_with_its_last_range():
    a_device = device([])
    spaces = space_of(a_device)
    svm = GpuSvm(FaultService(a_device, spaces, FREE_OF_COST, "cpu"), 1 << 29)
    for page in (0, 600):
        svm.insert(0, BASE + page * PAGE, 1 << 16)
    assert svm.ranges(0) == [(BASE, 1 << 16), (BASE + 592 * PAGE, 1 << 16)]
    spaces[0].munmap(BASE, BASE + PAGE)
    svm.collect_garbage()
    assert svm.ranges(0) == [(BASE + 592 * PAGE, 1 << 16)]
    assert len(spaces[0].subscriptions.intervals) == 1
    spaces[0].munmap(BASE + 512 * PAGE, BASE + 1024 * PAGE)
    spaces[0].munmap(BASE + 1024 * PAGE, BASE + 1025 * PAGE)
    svm.collect_garbage()
    assert svm.ranges(0) == []
    assert not spaces[0].subscriptions.intervals


def test_accesses_go_on_when_the_queue_is_empty():
    """A fault that comes while others are served is served before anything is replayed."""
    costs = FREE_OF_COST.with_times(page=1000)
    a_device = device([(0, 5, READ, 0), (100, 600, READ, 0)])
    result = run(a_device, "xe", costs=costs)
    assert [int(batch["raw"]) for batch in result.batches] == [1, 1]
    assert [int(batch["replays"]) for batch in result.batches] == [0, 1]
    assert result.device.faults == 2


def test_mappings_are_as_large_as_those_of_the_cpu():
    def words(*pieces):
        made = [
            np.uint64(first + n) | np.uint64(order << 56) for first, n_, order in pieces for n in range(n_)
        ]
        return np.array(made, dtype=np.uint64)

    assert dma_mappings(words((4096, 512, 9)), V5_18) == 1
    assert dma_mappings(words((4096, 16, 0)), V5_18) == 16
    # 16 pages inside of a huge one, from its page 496 on; then from its page 1 on: 511 are left, cut to 16.
    assert dma_mappings(words((4096 + 496, 16, 9)), V5_18) == 1
    assert dma_mappings(words((4096 + 1, 16, 9)), V5_18) == 1
    # Three pages are left of the huge one: two and one.
    assert dma_mappings(words((4096 + 509, 3, 9), (7, 1, 0)), V5_18) == 3
    driver = driver_named("xe")
    run(device([(0, 1, READ, 0)]), driver, spaces="written-huge")
    assert driver.counts["dma_mappings"] == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"largest": "32K"}, "one of 2M, 64K, 4K"),
        ({"notifier_size": "3M"}, "power of two"),
        ({"notifier_size": "64K"}, "power of two"),
        ({"notifier_size": "0"}, "power of two"),
        ({"check_pages": "1"}, "must be 0, 4K, 64K or 2M"),
        ({"read_only": "maybe"}, "on or off"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        driver_named("xe", settings)
