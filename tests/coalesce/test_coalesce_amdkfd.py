"""amdkfd's rules, worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

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
from gpuhmm.coalesce.drivers.pranges import Pranges
from gpuhmm.coalesce.drivers.registry import driver_named
from gpuhmm.coalesce.service import FaultService

READ, WRITE = ACCESS_READ, ACCESS_WRITE
MS = 1_000_000


def service_of(a_device, spaces):
    return FaultService(a_device, spaces, FREE_OF_COST, "cpu")


def pages(ranges):
    return [((start - BASE) // PAGE, (end - BASE) // PAGE) for start, end in ranges]


def vma(first, past):
    return SimpleNamespace(start=BASE + first * PAGE, end=BASE + past * PAGE)


def test_a_fault_maps_the_two_megabytes_around_it():
    a_device = device([(0, page, READ, 0) for page in (5, 6, 700, 5)])
    result = run(a_device, "amdkfd")
    assert asked(result) == [(0, 512), (512, 1024)]
    assert mapped(a_device) == list(range(1024))
    assert (result.totals["filtered"], result.totals["pages_unasked"]) == (2, 1021)


def test_faults_are_handled_in_the_order_of_the_ring():
    result = run(device([(time, page, READ, 0) for time, page in enumerate((700, 1600, 5))]), "amdkfd")
    assert asked(result) == [(512, 1024), (1536, 2048), (0, 512)]


def test_the_request_is_that_of_the_vma():
    reads = [(0, 1, READ, 0)]
    assert run(device(reads), "amdkfd", spaces="private-file").totals["handle_mm_faults"] == 512
    a_device = device(reads)
    spaces = space_of(a_device, "private-file")
    spaces[0].mprotect(BASE, BASE + 2048 * PAGE, 1)
    assert run(a_device, "amdkfd", spaces=spaces).totals["handle_mm_faults"] == 0


@pytest.mark.parametrize(("time", "dropped"), [(1_999_999, 1), (2_000_000, 0), (2_000_001, 0)])
def test_two_milliseconds_after_the_validation_the_range_is_served_again(time, dropped):
    """Nothing takes time: the first half of the range is validated at 0."""
    a_device = device([(0, 0, READ, 0), (time, 600, READ, 0)])
    result = run(a_device, "amdkfd", {"registered": "4M"}, costs=FREE_OF_COST)
    assert result.totals["filtered"] == dropped
    assert asked(result) == [(0, 512), (512, 1024)]


def test_a_dropped_fault_comes_again_and_again():
    """Passes are 10 µs apart: the other half of the range is refused at 10 µs, 20 µs, ..., 1.99 ms."""
    a_device = device([(0, 0, READ, 0), (100, 600, READ, 0)])
    result = run(a_device, "amdkfd", {"registered": "4M"}, costs=FREE_OF_COST)
    assert result.totals["filtered"] == 199
    assert int(result.batches[-1]["start"]) == 2 * MS
    assert result.totals["batches"] == 201


def test_the_time_counts_from_the_end_of_the_validation():
    costs = FREE_OF_COST.with_times(page=1000)
    a_device = device([(0, 0, READ, 0), (2_511_999, 600, READ, 0)])
    result = run(a_device, "amdkfd", {"registered": "4M"}, costs=costs)
    assert result.totals["filtered"] == 1
    a_device = device([(0, 0, READ, 0), (2_512_000, 600, READ, 0)])
    assert run(a_device, "amdkfd", {"registered": "4M"}, costs=costs).totals["filtered"] == 0


def test_without_a_window_the_whole_range_is_validated():
    a_device = device([(0, 0, READ, 0), (100, 600, READ, 0)])
    result = run(a_device, "amdkfd", {"registered": "4M", "window": "0"})
    assert asked(result) == [(0, 1024)]
    assert len(mapped(a_device)) == 1024


def test_no_filter_serves_what_is_mapped_already():
    result = run(
        device([(0, 5, READ, 0), (0, 6, READ, 1)]), "amdkfd", {"duplicate_ms": "0"}, costs=FREE_OF_COST
    )
    assert asked(result) == [(0, 512), (0, 512)]


def test_ranges_end_at_their_vma():
    a_device = device([(0, 50, READ, 0), (0, 300, READ, 0)])
    spaces = space_of(a_device)
    spaces[0].munmap(BASE + 100 * PAGE, BASE + 200 * PAGE)
    result = run(a_device, "amdkfd", spaces=spaces)
    assert asked(result) == [(0, 100), (200, 512)]


def test_ranges_end_at_their_neighbours():
    a_device = device([])
    pranges = Pranges(service_of(a_device, space_of(a_device)))
    for first, past, page, found in [
        (0, 100, 50, (0, 100)),
        (0, 2048, 300, (100, 512)),
        (0, 2048, 512, (512, 1024)),
        (1200, 1300, 1250, (1200, 1300)),
        (0, 2048, 1100, (1024, 1200)),
        (0, 2048, 1535, (1300, 1536)),
    ]:
        prange = pranges.create(0, BASE + page * PAGE, vma(first, past))
        assert pages([(prange.start, prange.end)]) == [found]
        assert pranges.find(0, BASE + page * PAGE) is prange
    assert len(pranges) == 6
    assert pranges.find(0, BASE + 1536 * PAGE) is None
    assert pranges.find(0, BASE - PAGE) is None


def test_registered_areas_are_split_at_multiples_of_the_largest_range():
    a_device = device([], npages=areas(2048, 700))
    pranges = Pranges(service_of(a_device, space_of(a_device)), registered=1 << 22)
    second = (1 << 29) // PAGE
    expected = [(0, 1024), (1024, 2048), (second, second + 700)]
    assert pages(pranges.ranges(0)) == expected


@pytest.mark.parametrize(
    ("unmapped", "left"),
    [
        ((0, 100), [(100, 512)]),
        ((400, 512), [(0, 400)]),
        ((100, 200), [(0, 100), (200, 512)]),
        ((0, 512), []),
        ((400, 700), [(0, 400)]),
    ],
)
def test_unmapping_cuts_ranges(unmapped, left):
    a_device = device([])
    spaces = space_of(a_device)
    service = service_of(a_device, spaces)
    pranges = Pranges(service)
    prange = pranges.create(0, BASE, spaces[0].vmas.lookup(BASE))
    prange.validated = 77
    spaces[0].munmap(BASE + unmapped[0] * PAGE, BASE + unmapped[1] * PAGE)
    assert pages(pranges.ranges(0)) == left
    pranges.flush_deferred()
    pranges.flush_deferred()
    notifiers = sorted((sub.start, sub.end) for sub in spaces[0].subscriptions.intervals)
    assert pages(notifiers) == left
    for number, (first, _) in enumerate(left):
        found = pranges.find(0, BASE + first * PAGE)
        # What is new, the part behind the hole, has never been validated.
        assert (found.validated == 77) == (number == 0)


def test_unmapping_again_before_the_deferred_work():
    a_device = device([])
    spaces = space_of(a_device)
    pranges = Pranges(service_of(a_device, spaces))
    pranges.create(0, BASE, spaces[0].vmas.lookup(BASE))
    for first, past in ((100, 200), (0, 50), (300, 400), (50, 100)):
        spaces[0].munmap(BASE + first * PAGE, BASE + past * PAGE)
    pranges.flush_deferred()
    assert pages(pranges.ranges(0)) == [(200, 300), (400, 512)]
    assert pages([(sub.start, sub.end) for sub in spaces[0].subscriptions.intervals]) == [
        (200, 300),
        (400, 512),
    ]


def test_one_invalidated_page_is_all_that_goes():
    a_device = device([(0, 5, READ, 0), (10 * MS, 7, READ, 0), (10 * MS, 8, READ, 0)])
    spaces = space_of(a_device)
    cpu = Interference(lambda n: invalidate(spaces[0], 7) if n == 4 else None, due=5 * MS)
    result = run(a_device, "amdkfd", spaces=spaces, cpu=cpu)
    assert result.totals["invalidated_pages"] == 1
    assert (result.device.faults, result.device.hits) == (2, 3)
    assert asked(result) == [(0, 512), (0, 512)]


def test_addresses_without_a_vma_are_cancelled():
    a_device = device([(0, page, READ, utlb) for page in (1, 700) for utlb in (0, 1)])
    spaces = space_of(a_device)
    spaces[0].munmap(BASE + 512 * PAGE, BASE + 1024 * PAGE)
    result = run(a_device, "amdkfd", spaces=spaces)
    assert result.finished
    assert (result.totals["cancelled"], result.totals["pages_mapped"]) == (1, 512)


def test_a_hole_in_a_registered_range_ends_its_validation():
    a_device = device([(0, 700, READ, 0)])
    spaces = space_of(a_device)
    spaces[0].munmap(BASE + 512 * PAGE, BASE + 600 * PAGE)
    result = run(a_device, "amdkfd", {"registered": "8M", "window": "0"}, spaces=spaces)
    # The range was made without a look at VMAs: what lies before the hole is mapped, the fault fails.
    assert asked(result) == [(0, 512)]
    assert result.totals["cancelled"] == 1


def test_what_the_vma_forbids_is_cancelled():
    a_device = device([(0, 1, WRITE, 0), (0, 2, READ, 0)])
    spaces = space_of(a_device)
    spaces[0].mprotect(BASE, BASE + 512 * PAGE, 1)
    result = run(a_device, "amdkfd", spaces=spaces)
    # The read maps the whole range, cancelled page and all.
    assert result.totals["cancelled"] == 1
    assert asked(result) == [(0, 512)]


@pytest.mark.parametrize(
    ("ebusy", "batches", "calls", "busy"),
    [("refresh", 1, 5, 4), ("give-up", 3, 3, 2)],
)
def test_ebusy(ebusy, batches, calls, busy):
    """The CPU invalidates the first nine times that it may.

    Once before an interrupt, once before a range is looked up, and before and after each call.
    """
    a_device = device([(0, 1, READ, 0)])
    spaces = space_of(a_device)
    cpu = Interference(lambda n: invalidate(spaces[0], 1) if n < 8 + (ebusy == "refresh") else None)
    result = run(a_device, "amdkfd", {"ebusy": ebusy}, spaces=spaces, cpu=cpu)
    assert (result.totals["batches"], result.totals["hmm_calls"]) == (batches, calls)
    assert (result.totals["ebusy"], result.totals["read_retries"]) == (busy, 0)
    assert result.finished


def test_a_sequence_read_once_never_stops_being_stale():
    a_device = device([(0, 1, READ, 0)])
    spaces = space_of(a_device)
    cpu = Interference(lambda n: invalidate(spaces[0], 1) if n == 2 else None)
    costs = FREE_OF_COST.with_times(block=MS)
    result = run(a_device, "amdkfd", {"ebusy": "spin"}, spaces=spaces, cpu=cpu, costs=costs)
    # A call a millisecond: the first returns at 1 ms, the last at 1001 ms, and the next pass succeeds.
    assert result.totals["ebusy"] == 1001
    assert (result.totals["batches"], result.totals["hmm_calls"]) == (2, 1002)
    assert result.model_ns == 1002 * MS


def test_refreshed_calls_give_up_when_the_time_is_up():
    a_device = device([(0, 1, READ, 0)])
    spaces = space_of(a_device)
    costs = FREE_OF_COST.with_times(block=100 * MS)
    cpu = Interference(lambda n: invalidate(spaces[0], 1) if n < 25 else None)
    result = run(a_device, "amdkfd", spaces=spaces, cpu=cpu, costs=costs)
    # Eleven calls of 100 ms until the second is over: -EAGAIN, and the hardware's next fault goes on.
    assert [int(batch["ebusy"]) for batch in result.batches] == [11, 0]
    assert result.finished


def test_half_a_gigabyte_has_a_second():
    """Twice as much has two: a range of 1 GiB may take 21 calls of 100 ms."""
    a_device = device([(0, 1, READ, 0)], npages=1 << 18)
    spaces = space_of(a_device, "untouched")
    costs = FREE_OF_COST.with_times(block=100 * MS)
    cpu = Interference(lambda n: invalidate(spaces[0], 1) if n < 60 else None)
    settings = {"registered": "1G", "window": "0"}
    result = run(a_device, "amdkfd", settings, spaces=spaces, cpu=cpu, costs=costs, max_batches=1)
    assert result.totals["ebusy"] == 21


def test_an_answer_that_is_stale_waits_for_the_next_fault():
    a_device = device([(0, 1, READ, 0)])
    spaces = space_of(a_device)
    cpu = Interference(lambda n: invalidate(spaces[0], 1) if n == 3 else None)
    result = run(a_device, "amdkfd", spaces=spaces, cpu=cpu)
    assert (result.totals["read_retries"], result.totals["hmm_calls"], result.totals["batches"]) == (1, 2, 2)


def test_chunks():
    result = run(device([(0, 1, READ, 0)]), "amdkfd", {"chunk": "512K"})
    assert (result.totals["hmm_calls"], result.totals["pages_mapped"]) == (4, 512)


def test_what_became_stale_in_a_chunk_before_goes_unnoticed_in_v6_1():
    """With the sequence read anew for each chunk, only what comes after the last reading is seen."""
    for ebusy, retries in (("refresh", 0), ("give-up", 1)):
        a_device = device([(0, 1, READ, 0)])
        spaces = space_of(a_device)
        # 2 and 3 are before and after the first chunk.
        cpu = Interference(lambda n, mm=spaces[0]: invalidate(mm, 1) if n == 3 else None)
        settings = {"chunk": "1M", "ebusy": ebusy}
        result = run(a_device, "amdkfd", settings, spaces=spaces, cpu=cpu)
        assert result.totals["read_retries"] + result.totals["ebusy"] == retries


def test_without_batches_nearly_every_fault_is_a_duplicate():
    """A stream of 64 µTLBs over 8 MiB: four ranges are served, everything else is dropped."""
    accesses = [(50 * n, n // 4 % 2048, READ, n % 64) for n in range(8192)]
    result = run(device(accesses), "amdkfd")
    served = result.totals["raw"] - result.totals["filtered"]
    assert served == 4
    assert result.totals["filtered"] / result.totals["raw"] > 0.97


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": "3M"}, "power of two"),
        ({"window": "2K"}, "power of two"),
        ({"chunk": "1"}, "power of two"),
        ({"registered": "2G"}, "power of two"),
        ({"registered": "4K"}, "power of two"),
        ({"duplicate_ms": "-1"}, "from 0 to 5"),
        ({"duplicate_ms": "nan"}, "from 0 to 5"),
        ({"retry_us": "0"}, "from 1 to 1000"),
        ({"ebusy": "ignore"}, "one of refresh, spin, give-up"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        driver_named("amdkfd", settings)
