"""The drivers side by side: the same accesses, and where their rules tell them apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_runs import BASE, PAGE, Interference, device, invalidate, mapped, run, space_of

from gpuhmm.coalesce.access import ACCESS_READ, ACCESS_WRITE
from gpuhmm.coalesce.areas import Area, DeviceAreas
from gpuhmm.coalesce.cpu_side import OPERATIONS, CpuActivity
from gpuhmm.coalesce.drivers.registry import driver_named
from gpuhmm.coalesce.spaces import spaces_over
from gpuhmm.mirror.page_table import DPT_PFN, DPT_VALID, DPT_WRITE

DRIVERS = ("uvm", "nouveau", "amdkfd", "xe")


def totals(name, accesses, layout="written", **more):
    return run(device(accesses), name, spaces=layout, **more).totals


def test_reads_of_a_private_file_are_copied_by_those_who_ask_as_the_vma_allows():
    faults = {
        name: totals(name, [(0, 1, ACCESS_READ, 0)], "private-file")["handle_mm_faults"] for name in DRIVERS
    }
    assert faults == {"uvm": 16, "nouveau": 0, "amdkfd": 512, "xe": 512}


def test_pages_that_nobody_asked_for():
    accesses = [(0, page, ACCESS_READ, 0) for page in (0, 100, 600)]
    unasked = {name: totals(name, accesses)["pages_unasked"] for name in DRIVERS}
    assert unasked == {"uvm": 45, "nouveau": 0, "amdkfd": 1021, "xe": 1021}


def test_calls_replays_and_dropped_faults():
    """Pages 0 to 99 by four µTLBs each, and the next block a second later."""
    accesses = [(0, page, ACCESS_READ, utlb) for page in range(100) for utlb in range(4)]
    accesses += [(10**9, 600, ACCESS_READ, 0)]
    found = {name: totals(name, accesses) for name in DRIVERS}
    # uvm serves 64 pages with its first 256 faults, and the rest, which its flush drops, with 144 others.
    expected = {"uvm": (3, 0, 3), "nouveau": (101, 300, 2), "amdkfd": (2, 399, 2), "xe": (2, 399, 2)}
    for name in DRIVERS:
        counts = found[name]["hmm_calls"], found[name]["filtered"], found[name]["replays"]
        assert counts == expected[name]
    assert (found["uvm"]["raw"], found["uvm"]["coalesced"], found["uvm"]["flushed"]) == (401, 101, 144)


def test_huge_pages_make_them_alike():
    accesses = [(0, page, ACCESS_READ, 0) for page in range(0, 2048, 7)]
    found = {name: totals(name, accesses, "written-huge") for name in DRIVERS}
    assert {name: found[name]["pages_mapped"] for name in DRIVERS} == dict.fromkeys(DRIVERS, 2048)
    # The batch of 256 ends in the last block.
    calls = {"uvm": 5, "nouveau": 4, "amdkfd": 4, "xe": 4}
    assert {name: found[name]["hmm_calls"] for name in DRIVERS} == calls


def test_an_invalidated_page_takes_as_much_as_the_driver_tracks():
    """Page 3 is invalidated between two reads of page 9; a fault elsewhere comes last."""
    lost = {}
    for name in DRIVERS:
        accesses = [(0, 9), (0, 3), (10**7, 9), (2 * 10**7, 700)]
        a_device = device([(time, page, ACCESS_READ, 0) for time, page in accesses])
        spaces = space_of(a_device)
        cpu = Interference(lambda n: None, due=5 * 10**6)
        cpu.when_due = lambda mm=spaces[0]: invalidate(mm, 3)
        result = run(a_device, name, spaces=spaces, cpu=cpu)
        lost[name] = result.totals["invalidated_pages"]
    assert lost == {"uvm": 1, "nouveau": 1, "amdkfd": 1, "xe": 512}


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(DRIVERS),
    version=st.sampled_from(["v6.1", "v5.7"]),
    layout=st.sampled_from(["written", "forked", "private-file", "written-huge", "untouched"]),
    accesses=st.lists(
        st.tuples(st.integers(0, 10**7), st.integers(0, 1100), st.integers(1, 4), st.integers(0, 3)),
        max_size=60,
    ),
    operation=st.sampled_from([None, *sorted(OPERATIONS)]),
    seed=st.integers(0, 9),
)
def test_every_access_ends_and_the_device_has_what_the_page_table_has(
    name, version, layout, accesses, operation, seed
):
    a_device = device(accesses, npages=1101)
    spaces = space_of(a_device, layout)
    cpu = None
    if operation is not None:
        cpu = CpuActivity(spaces, a_device.areas, per_ms=2, operation=operation, npages=3, seed=seed)
    chosen = {"version": version, "timeout_ms": 5} if name == "nouveau" else None
    result = run(a_device, name, chosen, spaces=spaces, cpu=cpu)
    assert result.finished
    assert a_device.done()
    assert result.totals["raw"] + result.totals["flushed"] == a_device.counters.faults
    exclusive = name == "nouveau" and version == "v6.1" and any(access >= 3 for _, _, access, _ in accesses)
    if exclusive or result.totals["cancelled"]:
        return
    for page in mapped(a_device):
        entry = int(a_device.areas.entries[page])
        pfn, writable = _cpu_mapping(spaces[0], page)
        assert entry & int(DPT_VALID)
        assert entry & int(DPT_PFN) == pfn
        assert writable or not entry & int(DPT_WRITE)


def _cpu_mapping(mm, page):
    """The PFN and write permission that the CPU has of a page, in a huge page or not."""
    va = BASE + page * PAGE
    pmd = mm.entry(va, 2)
    if pmd & 0x80:
        return ((pmd >> 12) & ((1 << 40) - 1)) + (va >> 12) % 512, bool(pmd & 2)
    pte = mm.entry(va, 1)
    assert pte & 1
    return (pte >> 12) & ((1 << 40) - 1), bool(pte & 2)


def test_the_drivers_know_spaces_apart():
    for name in DRIVERS:
        made = DeviceAreas([Area(space, BASE, BASE + 512 * PAGE) for space in (0, 1)])
        a_device = device([(0, 3, ACCESS_WRITE, 0)], npages=made)
        result = run(a_device, name, spaces=spaces_over(made))
        assert result.finished
        assert not made.entries[512:].any()
        assert np.count_nonzero(made.entries[:512]) == {"nouveau": 1, "uvm": 16}.get(name, 512)


@pytest.mark.parametrize("name", DRIVERS)
def test_a_driver_can_be_used_again(name):
    driver = driver_named(name)
    results = [run(device([(0, 3, ACCESS_READ, 0), (0, 700, ACCESS_WRITE, 0)]), driver) for _ in range(2)]
    assert results[0].totals == results[1].totals
    assert results[0].driver == name
    assert ".c:" in results[0].source
