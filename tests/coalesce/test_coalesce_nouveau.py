"""nouveau's rules, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scripted_runs import (
    BASE,
    FREE_OF_COST,
    PAGE,
    Interference,
    asked,
    device,
    invalidate,
    mapped,
    run,
    space_of,
)

from gpuhmm.coalesce.access import ACCESS_ATOMIC_STRONG, ACCESS_PREFETCH, ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.drivers.nouveau import sort_order
from gpuhmm.coalesce.drivers.registry import driver_named
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.errors import LivelockError
from gpuhmm.memory.fault.burst import handle_mm_fault_range
from gpuhmm.mirror.page_table import DPT_WRITE

READ, WRITE, ATOMIC, PREFETCH = ACCESS_READ, ACCESS_WRITE, ACCESS_ATOMIC_STRONG, ACCESS_PREFETCH


def test_the_order_is_space_address_access_ascending():
    trace = FaultTrace.of(
        space=np.array([1, 0, 0, 0, 0, 0], dtype=np.uint16),
        va=np.array([0, 8, 4, 4, 4, 4], dtype=np.uint64) * np.uint64(PAGE),
        access=np.array([READ, READ, ATOMIC, WRITE, PREFETCH, READ], dtype=np.uint8),
    )
    assert sort_order(trace).tolist() == [4, 5, 3, 2, 1, 0]
    # v5.7 only knows what writes, and takes it first; the rest stays as it was in the buffer.
    assert sort_order(trace, writes_first=True).tolist() == [2, 3, 4, 5, 1, 0]


def test_a_call_for_each_page_in_the_order_of_addresses():
    result = run(device([(0, page, READ, 0) for page in (9, 3, 700, 4)]), "nouveau")
    assert asked(result) == [(3, 4), (4, 5), (9, 10), (700, 701)]
    assert result.totals["pages_mapped"] == 4
    assert result.totals["replays"] == result.totals["batches"] == 1


def test_the_whole_buffer_is_one_batch():
    result = run(device([(0, page, READ, 0) for page in range(700)]), "nouveau")
    assert [int(batch["raw"]) for batch in result.batches] == [700]


def test_a_write_behind_a_read_is_left_out_even_where_it_is_not_satisfied():
    """What is covered is judged by the access of the first fault, which is the least."""
    accesses = [(0, 3, WRITE, 1), (0, 3, READ, 0)]
    result = run(device(accesses), "nouveau", spaces="private-file")
    first, second = result.batches
    assert (int(first["raw"]), int(first["filtered"]), int(first["handle_mm_faults"])) == (2, 1, 0)
    assert (int(second["raw"]), int(second["filtered"]), int(second["handle_mm_faults"])) == (1, 0, 1)
    # Where the page is writable anyway, the read's mapping serves the write as well.
    assert run(device(accesses), "nouveau").totals["batches"] == 1


def test_duplicates_behind_a_read_are_left_out():
    result = run(device([(0, 3, READ, utlb) for utlb in range(5)]), "nouveau")
    assert (result.totals["hmm_calls"], result.totals["filtered"]) == (1, 4)


def test_the_mapping_is_as_large_as_that_of_the_cpu():
    a_device = device([(0, page, READ, 0) for page in (100, 5, 511, 512)])
    result = run(a_device, "nouveau", spaces="written-huge")
    assert asked(result) == [(5, 6), (512, 513)]
    assert result.totals["filtered"] == 2
    assert result.totals["pages_mapped"] == 1024
    assert result.totals["pages_unasked"] == 1020
    pfns = (a_device.areas.entries[:1024] & np.uint64((1 << 52) - 1)).astype(np.int64)
    assert (np.diff(pfns[:512]) == 1).all()
    assert (np.diff(pfns[512:]) == 1).all()


def test_reads_do_not_copy():
    result = run(device([(0, 1, READ, 0)]), "nouveau", spaces="private-file")
    assert result.totals["handle_mm_faults"] == 0


def test_an_atomic_takes_the_page_from_the_cpu():
    a_device = device([(0, 1, ATOMIC, 0)])
    spaces = space_of(a_device)
    result = run(a_device, "nouveau", spaces=spaces)
    assert (result.totals["hmm_calls"], result.totals["pages_mapped"]) == (0, 1)
    assert not spaces[0].entry(BASE + PAGE, 1) & 1
    assert a_device.areas.entries[1] & DPT_WRITE


def test_after_an_atomic_everything_is_exclusive_until_the_end_of_the_interrupt():
    a_device = device([(0, 0, READ, 0), (0, 1, ATOMIC, 0), (0, 2, READ, 0), (10**9, 3, READ, 0)])
    spaces = space_of(a_device)
    result = run(a_device, "nouveau", spaces=spaces)
    assert [bool(spaces[0].entry(BASE + page * PAGE, 1) & 1) for page in range(4)] == [
        True,
        False,
        False,
        True,
    ]
    assert asked(result) == [(0, 1), (3, 4)]


def test_no_page_of_a_shared_file_can_be_exclusive():
    result = run(device([(0, 1, ATOMIC, 0), (0, 2, READ, 0)]), "nouveau", spaces="shared-file")
    assert result.totals["cancelled"] == 2
    assert result.totals["pages_mapped"] == 0


def test_the_cpu_gets_an_exclusive_page_back():
    a_device = device([(0, 1, ATOMIC, 0), (10**9, 1, READ, 0)])
    spaces = space_of(a_device)

    def act(n):
        if n == 3:  # 0 to 2: the batch; then, when it is due, the CPU reads the page
            handle_mm_fault_range(spaces[0], spaces[0].vmas.lookup(BASE), BASE + PAGE, BASE + 2 * PAGE, 0)

    result = run(a_device, "nouveau", spaces=spaces, cpu=Interference(act, due=10**8))
    assert result.finished
    assert result.totals["invalidated_pages"] >= 1
    assert result.totals["pages_mapped"] == 2


def test_prefetch_faults_only_look():
    present = run(device([(0, 1, PREFETCH, 0)]), "nouveau")
    assert (present.totals["pages_mapped"], present.totals["handle_mm_faults"]) == (1, 0)
    asking = run(device([(0, 1, PREFETCH, 0)]), "nouveau", {"prefetch": "fault"}, spaces="untouched")
    assert (asking.totals["pages_mapped"], asking.totals["handle_mm_faults"]) == (1, 1)
    with pytest.raises(LivelockError, match="without mapping"):
        run(device([(0, 1, PREFETCH, 0)]), "nouveau", spaces="untouched")


def test_addresses_without_a_vma_are_cancelled():
    for version in ("v6.1", "v5.7"):
        a_device = device([(0, page, READ, utlb) for page in (1, 700) for utlb in (0, 1)])
        spaces = space_of(a_device)
        spaces[0].munmap(BASE + 512 * PAGE, BASE + 1024 * PAGE)
        result = run(a_device, "nouveau", {"version": version}, spaces=spaces)
        assert result.finished
        assert (result.totals["cancelled"], result.totals["pages_mapped"]) == (1, 1)
        assert result.totals["replays"] == 1


@pytest.mark.parametrize("version", ["v6.1", "v5.7"])
def test_the_time_is_up_after_a_second_of_invalidations(version):
    a_device = device([(0, 1, READ, 0), (0, 30, READ, 0)])
    spaces = space_of(a_device)
    cpu = Interference(lambda n: invalidate(spaces[0], 1))
    costs = FREE_OF_COST.with_times(block=100_000)
    settings = {"version": version, "timeout_ms": 1}
    result = run(a_device, "nouveau", settings, spaces=spaces, cpu=cpu, costs=costs)
    # Calls of 100 µs begin at 0, 100 µs, ..., 1 ms: the last of eleven ends too late.  Page 30 has peace.
    assert result.totals["ebusy"] == 11
    assert (result.totals["cancelled"], result.totals["pages_mapped"]) == (1, 1)
    assert result.model_ns == 12 * 100_000


@pytest.mark.parametrize("layout", ["forked", "zero", "written-huge"])
def test_an_atomic_on_a_page_that_must_be_copied_or_split_first_runs_out_of_time(layout):
    """That makes the first try stale; giving the page back to the CPU makes every later one stale."""
    costs = FREE_OF_COST.with_times(block=1000)
    result = run(device([(0, 1, ATOMIC, 0)]), "nouveau", spaces=layout, costs=costs)
    # A try a microsecond, from 0 to 1 s.
    assert (result.totals["read_retries"], result.totals["cancelled"]) == (1_000_001, 1)
    assert result.totals["handle_mm_faults"] == 1_000_001
    assert result.model_ns == 1_000_001_000
    instant = run(device([(0, 1, ATOMIC, 0)]), "nouveau", spaces=layout, costs=FREE_OF_COST)
    assert (instant.totals["cancelled"], instant.model_ns) == (1, 1_000_000_001)


def test_other_pages_become_exclusive_at_once():
    for layout in ("untouched", "written"):
        result = run(device([(0, 1, ATOMIC, 0)]), "nouveau", spaces=layout)
        assert (result.totals["read_retries"], result.totals["pages_mapped"]) == (0, 1)


def test_an_exclusive_page_that_is_invalidated_without_end():
    a_device = device([(0, 1, ATOMIC, 0)])
    spaces = space_of(a_device)
    cpu = Interference(lambda n: invalidate(spaces[0], 1))
    costs = FREE_OF_COST.with_times(block=100_000)
    result = run(a_device, "nouveau", {"timeout_ms": 1}, spaces=spaces, cpu=cpu, costs=costs)
    assert (result.totals["read_retries"], result.totals["cancelled"]) == (11, 1)


def test_an_answer_that_is_stale_is_asked_for_again():
    a_device = device([(0, 1, READ, 0)])
    spaces = space_of(a_device)
    # 0: before the interrupt; 1 and 2: before and after the call.
    cpu = Interference(lambda n: invalidate(spaces[0], 1) if n == 2 else None)
    result = run(a_device, "nouveau", spaces=spaces, cpu=cpu)
    assert (result.totals["read_retries"], result.totals["hmm_calls"], result.totals["batches"]) == (1, 2, 1)


def test_the_notifiers_of_calls_go_with_them():
    a_device = device([(0, page, READ, 0) for page in range(20)])
    spaces = space_of(a_device)
    run(a_device, "nouveau", spaces=spaces)
    assert len(spaces[0].subscriptions.intervals) == 1


def test_windows_of_sixteen_pages_begin_at_the_fault():
    a_device = device([(0, page, READ, 0) for page in (20, 3, 18, 3, 19)])
    result = run(a_device, "nouveau", {"version": "v5.7"})
    # [3, 19) holds 3 and 18, and ends with its last fault; 4 to 17 are mapped because they are there.
    assert asked(result) == [(3, 19), (19, 21)]
    assert mapped(a_device) == list(range(3, 21))
    assert result.totals["pages_unasked"] == 14
    assert result.totals["filtered"] == 1


def test_what_lies_between_the_faults_of_a_window_is_not_faulted_in():
    a_device = device([(0, page, READ, 0) for page in (512, 515)])
    spaces = space_of(a_device, "untouched")
    result = run(a_device, "nouveau", {"version": "v5.7"}, spaces=spaces)
    assert asked(result) == [(512, 516)]
    assert 512 in mapped(a_device)
    assert 515 in mapped(a_device)
    assert result.totals["pages_asked"] == 2


def test_a_window_ends_with_its_vma():
    a_device = device([(0, page, READ, 0) for page in (10, 12)])
    spaces = space_of(a_device)
    spaces[0].mprotect(BASE + 12 * PAGE, BASE + 30 * PAGE, 1)
    result = run(a_device, "nouveau", {"version": "v5.7"}, spaces=spaces)
    assert asked(result) == [(10, 11), (12, 13)]


def test_a_write_in_a_window_serves_the_reads_of_its_page():
    result = run(
        device([(0, 3, READ, 0), (0, 3, WRITE, 1)]), "nouveau", {"version": "v5.7"}, spaces="private-file"
    )
    assert (result.totals["batches"], result.totals["filtered"]) == (1, 1)


def test_pages_that_stay_read_only_are_cancelled_for_writers_alone():
    a_device = device([(0, 3, READ, 0), (0, 40, WRITE, 0)])
    spaces = space_of(a_device)
    spaces[0].mprotect(BASE, BASE + 2048 * PAGE, 1)
    for version in ("v6.1", "v5.7"):
        a_device = device([(0, 3, READ, 0), (0, 40, WRITE, 0)])
        result = run(a_device, "nouveau", {"version": version}, spaces=spaces)
        assert (result.totals["cancelled"], result.totals["pages_mapped"]) == (1, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"version": "v4.20"}, "one of v6.1, v5.7"),
        ({"prefetch": "never"}, "one of snapshot, fault"),
        ({"timeout_ms": 0}, "at least 1"),
        ({"window": "64K"}, "no setting 'window'"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        driver_named("nouveau", settings)
