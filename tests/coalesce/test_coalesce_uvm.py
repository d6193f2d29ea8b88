"""The uvm driver: each of its rules on faults whose outcome is worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_device import ScriptedDevice

from gpuhmm.coalesce.access import ACCESS_NEEDS, ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.areas import Area, DeviceAreas
from gpuhmm.coalesce.device.recorded import RecordedDevice
from gpuhmm.coalesce.drivers.registry import driver_named
from gpuhmm.coalesce.run import coalesce
from gpuhmm.coalesce.spaces import spaces_over
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.mirror.page_table import DPT_VALID, DPT_WRITE
from gpuhmm.mm.vma import VM_READ, VM_WRITE

BASE = 1 << 40
PAGE = 4096


def device(accesses, npages=4096, **more):
    areas = DeviceAreas([Area(0, BASE, BASE + npages * PAGE)])
    rows = [(time, BASE + page * PAGE, access, utlb) for time, page, access, utlb in accesses]
    return ScriptedDevice(areas, rows, **more)


def run(a_device, layout="written", spaces=None, **driver):
    spaces = spaces_over(a_device.areas, layout) if spaces is None else spaces
    return coalesce(a_device, spaces, driver_named("uvm", {"prefetch": False} | driver), backend="cpu")


def reads(pages, time=0):
    return [(time, page, ACCESS_READ, page % 40) for page in pages]


def test_a_batch_has_at_most_256_faults():
    result = run(device(reads(range(600))), replay="once")
    assert result.batches["raw"].tolist() == [256, 256, 88]
    assert result.device.replays == 1


def test_one_service_has_at_most_20_batches():
    result = run(device(reads(range(100))), batch=4, replay="once")
    # The first service ends with 20 faults in the buffer, whose accesses its replay makes a second time.
    assert len(result.batches) == 25 + 5
    assert result.totals["covered"] == 20
    assert result.device.replays == 2


def test_at_least_one_replay_where_the_policy_gives_none():
    result = run(device(reads([1])), replay="once")
    assert result.finished
    assert result.device.replays == 1


def test_a_replay_after_each_block():
    pages = [1, 600, 601, 1200]
    result = run(device(reads(pages)), replay="block")
    assert int(result.batches["va_blocks"][0]) == 3
    assert int(result.batches["replays"][0]) == 3
    assert result.totals["hmm_calls"] == 3
    # What the first replays made again of the other blocks was served meanwhile.
    assert result.totals["covered"] == result.totals["unique"] - 4


def test_faults_merge_at_the_fetch():
    # µTLB 1: page 3 twice in a row; µTLB 2 joins page 3 as the last fault, then 9, then page 3 again, which
    # is no longer the last fault of anyone.
    rows = [(0, 3, 1, 1), (1, 3, 1, 1), (2, 3, 1, 2), (3, 9, 1, 2), (4, 3, 1, 2)]
    result = run(device(rows), batch=5)
    assert int(result.batches["raw"][0]) == 5
    assert int(result.batches["coalesced"][0]) == 3
    assert int(result.batches["unique"][0]) == 2
    unmerged = run(device(rows), batch=5, coalesce=False)
    assert int(unmerged.batches["coalesced"][0]) == 5


def test_the_flush_reads_put_where_most_faults_were_duplicates():
    # Four faults at once, the rest while the batch is served.
    late = reads(range(100, 110), time=20_000)
    repeated = run(device([(0, 3, 1, 1)] * 4 + late), batch=4)
    assert int(repeated.batches["flushed"][0]) == 10
    different = run(device([(0, page, 1, 1) for page in range(4)] + late), batch=4)
    assert int(different.batches["flushed"][0]) == 0
    assert repeated.finished
    assert different.finished


def test_hmm_is_asked_for_everything_from_the_first_to_the_last_fault():
    result = run(device(reads([1, 9])), "untouched")
    (batch,) = result.batches
    assert int(batch["hmm_calls"]) == 1
    assert int(batch["handle_mm_faults"]) == 9
    assert int(batch["pages_asked"]) == 2
    assert int(batch["pages_mapped"]) == 2


def test_write_is_asked_for_wherever_the_vma_may_be_written():
    a_device = device(reads([1, 2]))
    result = run(a_device, "private-file")
    assert result.totals["handle_mm_faults"] == 2
    assert (a_device.areas.entries[1:3] & DPT_WRITE != 0).all()


def test_the_tree_grows_a_fault_to_a_big_page():
    result = run(device(reads([5])), prefetch=True)
    assert result.totals["pages_mapped"] == 16
    assert result.totals["prefetched"] == result.totals["pages_unasked"] == 15


@pytest.mark.parametrize(
    ("pages", "mapped"),
    [
        ([0], 16),
        ([0, 16], 32),  # two big pages of two: their node of 128 KiB holds nothing more
        ([0, 32], 32),  # two of four are no more than 51 %
        ([0, 16, 32], 64),  # three of four: all of 256 KiB
        ([0, 64, 128, 192, 256], 80),  # five of 32, far apart
        ([n * 32 for n in range(9)] + [n * 32 + 16 for n in range(8)], 512),  # 17 of 32
    ],
)
def test_the_tree_prefetches_what_is_mostly_there(pages, mapped):
    result = run(device(reads(pages)), prefetch=True)
    assert result.totals["pages_mapped"] == mapped


def test_the_tree_counts_what_the_gpu_has_already():
    a_device = device(reads([0, 16]) + reads([32], time=10**9))
    result = run(a_device, prefetch=True)
    assert result.batches["pages_mapped"].tolist() == [32, 32]


def test_two_vmas_in_a_block_are_asked_for_one_by_one():
    a_device = device(reads([1, 2, 300]))
    spaces = spaces_over(a_device.areas, "written")
    spaces[0].mprotect(BASE + 256 * PAGE, BASE + 512 * PAGE, VM_READ)
    result = run(a_device, spaces=spaces)
    assert result.totals["va_blocks"] == 1
    assert result.totals["hmm_calls"] == 2
    assert result.totals["pages_mapped"] == 3


def test_prefetching_stays_within_the_vma():
    a_device = device(reads([250]))
    spaces = spaces_over(a_device.areas, "written")
    spaces[0].munmap(BASE + 252 * PAGE, BASE + 4096 * PAGE)
    result = run(a_device, spaces=spaces, prefetch=True)
    assert result.totals["pages_mapped"] == 12  # 240 to 251


def test_what_may_not_be_written_is_cancelled_and_the_rest_served():
    a_device = device([(0, 1, ACCESS_WRITE, 1), (0, 2, ACCESS_READ, 2), (0, 600, ACCESS_WRITE, 3)])
    spaces = spaces_over(a_device.areas, "written")
    spaces[0].mprotect(BASE, BASE + 512 * PAGE, VM_READ)
    result = run(a_device, spaces=spaces)
    assert result.finished
    assert result.totals["cancelled"] == 1
    assert result.totals["pages_mapped"] == 2


def test_an_address_without_a_vma_is_cancelled():
    a_device = device(reads([1, 600]))
    spaces = spaces_over(a_device.areas, "written")
    spaces[0].munmap(BASE + 512 * PAGE, BASE + 1024 * PAGE)
    result = run(a_device, spaces=spaces)
    assert result.totals["cancelled"] == 1
    assert result.totals["pages_mapped"] == 1


@pytest.mark.parametrize(("count", "off"), [(171, True), (170, False)])
def test_too_many_invalid_prefetches_turn_their_faults_off(count, off):
    """More than two thirds of a batch of 256, and on again after a second."""
    later = 2 * 10**9
    trace = FaultTrace.of(
        time=[0] * count + [10**6, later, later + 10**6],
        va=BASE + PAGE * np.array([*range(512, 512 + count), 0, 1, 2], dtype=np.uint64),
        access=[0] * count + [0, 1, 0],
    )
    areas = DeviceAreas([Area(0, BASE, BASE + 1024 * PAGE)])
    spaces = spaces_over(areas, "written")
    spaces[0].munmap(BASE + 512 * PAGE, BASE + 1024 * PAGE)
    a_device = RecordedDevice(trace, areas)
    result = run(a_device, spaces=spaces)
    assert result.finished
    assert (a_device.areas.entries[:3] & DPT_VALID != 0).tolist() == [not off, True, True]


def test_its_own_copies_invalidate_a_block_and_it_is_done_again():
    result = run(device([(0, page, ACCESS_WRITE, 0) for page in range(4)]), "forked")
    assert result.finished
    assert result.totals["ebusy"] >= 1
    assert result.totals["hmm_calls"] == 1 + result.totals["ebusy"] + result.totals["read_retries"]


class Invalidator:
    """Takes page 3 away at each of the given times."""

    def __init__(self, spaces, times):
        self.spaces, self.times = spaces, list(times)

    @property
    def due(self):
        return self.times[0] if self.times else 1 << 60

    def run(self, now):
        done = []
        while self.times and self.times[0] <= now:
            self.times.pop(0)
            self.spaces[0].mprotect(BASE + 3 * PAGE, BASE + 4 * PAGE, VM_READ)
            self.spaces[0].mprotect(BASE + 3 * PAGE, BASE + 4 * PAGE, VM_READ | VM_WRITE)
            done.append((0, BASE + 3 * PAGE, BASE + 4 * PAGE))
        return done


@pytest.mark.parametrize("thrashing", [True, False])
def test_a_page_over_which_both_fight_is_throttled(thrashing):
    # The CPU takes the page away every 150 µs, the GPU wants it back each time.
    a_device = device([(100_000 * n, 3, ACCESS_READ, 0) for n in range(40)])
    spaces = spaces_over(a_device.areas, "written")
    cpu = Invalidator(spaces, range(50_000, 4_000_000, 150_000))
    driver = driver_named("uvm", {"prefetch": False, "thrashing": thrashing})
    result = coalesce(a_device, spaces, driver, backend="cpu", cpu=cpu)
    assert result.finished
    assert (result.totals["throttled"] > 0) == thrashing
    assert result.totals["invalidated_pages"] > 5


def test_pages_that_thrash_are_not_prefetched():
    a_device = device([(100_000 * n, 3, ACCESS_READ, 0) for n in range(12)] + reads([5], 10**8))
    spaces = spaces_over(a_device.areas, "written")
    cpu = Invalidator(spaces, range(50_000, 1_200_000, 150_000))
    driver = driver_named("uvm")
    coalesce(a_device, spaces, driver, backend="cpu", cpu=cpu)
    block = driver._blocks[0, BASE >> 21]
    assert block.thrashing.thrashing_pages().tolist() == [page == 3 for page in range(512)]
    assert int(np.count_nonzero(a_device.areas.entries)) < 16 + 1


@settings(max_examples=40, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(st.integers(0, 50_000), st.integers(0, 1200), st.integers(0, 4), st.integers(0, 5)),
        min_size=1,
        max_size=120,
    ),
    batch=st.sampled_from([1, 3, 16, 256]),
    replay=st.sampled_from(["block", "batch", "batch-flush", "once"]),
    prefetch=st.booleans(),
    layout=st.sampled_from(["written", "untouched", "forked"]),
    buffer_entries=st.sampled_from([4, 4096]),
)
def test_every_access_is_served_and_counted(accesses, batch, replay, prefetch, layout, buffer_entries):
    a_device = device(accesses, npages=1536, buffer_entries=buffer_entries)
    result = run(a_device, layout, batch=batch, replay=replay, prefetch=prefetch)
    assert result.finished
    for _, page, access, _ in accesses:
        need = ACCESS_NEEDS[access]
        assert a_device.areas.entries[page] & need == need
    table, counts = result.batches, result.totals
    assert (table["raw"] <= batch).all()
    assert (table["unique"] <= table["coalesced"]).all()
    assert (table["coalesced"] <= table["raw"]).all()
    assert (table["raw"] == table["unique"] + table["same_utlb"] + table["cross_utlb"]).all()
    assert counts["raw"] + counts["flushed"] == result.device.faults
    assert counts["replays"] <= result.device.replays
    assert counts["pages_unasked"] == counts["prefetched"]
    assert int(np.count_nonzero(a_device.areas.entries)) <= counts["pages_mapped"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"batch": 0}, "batch must be from 1"),
        ({"replay": "never"}, "one of block, batch"),
        ({"prefetch_threshold": 101}, "from 1 to 100"),
        ({"prefetch_min_faults": 21}, "from 1 to 20"),
    ],
)
def test_bad_settings(setting, words):
    with pytest.raises(ValueError, match=words):
        driver_named("uvm", setting)
