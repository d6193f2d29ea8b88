"""Every count of a batch, counted again in plain Python, under every driver and over two devices."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_device import ScriptedDevice

from gpuhmm.coalesce.access import ACCESS_NEEDS
from gpuhmm.coalesce.areas import DPT_CANCELLED, Area, DeviceAreas
from gpuhmm.coalesce.costs import COSTS
from gpuhmm.coalesce.cpu_side import OPERATIONS, CpuActivity
from gpuhmm.coalesce.device.config import DeviceConfig
from gpuhmm.coalesce.device.gpu import Gpu
from gpuhmm.coalesce.device.recorded import RecordedDevice
from gpuhmm.coalesce.drivers.registry import DRIVERS, driver_named
from gpuhmm.coalesce.layouts import LAYOUTS
from gpuhmm.coalesce.patterns import workload
from gpuhmm.coalesce.run import coalesce
from gpuhmm.coalesce.spaces import spaces_over
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.memory import check_invariants
from gpuhmm.mirror.page_table import DPT_PFN, DPT_VALID, DPT_WRITE

BASE = 1 << 40
PAGE = 4096
PFN = (1 << 40) - 1

SMALL = DeviceConfig(
    "small",
    gpcs=2,
    utlbs=2,
    sms=4,
    warps_per_sm=4,
    blocks_per_sm=2,
    threads_per_sm=128,
    utlb_outstanding=5,
    buffer_entries=16,
)
SETTINGS = {
    "uvm": st.fixed_dictionaries(
        {
            "batch": st.sampled_from([3, 256]),
            "replay": st.sampled_from(["block", "batch", "batch-flush", "once"]),
            "prefetch": st.booleans(),
        }
    ),
    "nouveau": st.fixed_dictionaries(
        {
            "version": st.sampled_from(["v6.1", "v5.7"]),
            "timeout_ms": st.just(5),
            "prefetch": st.just("fault"),
        }
    ),
    "amdkfd": st.fixed_dictionaries({"registered": st.sampled_from([0, 1 << 21])}),
    "xe": st.fixed_dictionaries({"check_pages": st.sampled_from([0, 1 << 16])}),
    "free": st.fixed_dictionaries(
        {
            "batch": st.sampled_from([0, 5]),
            "window": st.sampled_from([PAGE, 1 << 16, 1 << 21]),
            "whole_window": st.booleans(),
            "duplicates": st.sampled_from(["page", "none"]),
            "replay": st.sampled_from(["batch", "batch-flush", "once"]),
            "timeout_ms": st.just(5),
        }
    ),
}
#: A driver and settings of it.
CHOICES = st.sampled_from(sorted(DRIVERS)).flatmap(lambda name: st.tuples(st.just(name), SETTINGS[name]))


class Watched:
    """A device that keeps what was read, and what the device could reach then; its times never fall."""

    def __init__(self, device):
        self.device = device
        self.now = 0
        self.reads = []

    def __getattr__(self, name):
        return getattr(self.device, name)

    def _at(self, now):
        assert now >= self.now
        self.now = now

    def next_fault(self, now, until=None):
        self._at(now)
        return self.device.next_fault(now, until)

    def read_put(self, now):
        self._at(now)
        return self.device.read_put(now)

    def replay(self, now):
        self._at(now)
        self.device.replay(now)

    def read(self, get, past):
        found = self.device.read(get, past)
        self.reads.append((found, self.device.areas.entries.copy()))
        return found


class Checked:
    """A driver after whose every service the device may reach nothing that the CPU may not."""

    def __init__(self, driver, spaces, exclusive):
        self.driver, self.spaces, self.exclusive = driver, spaces, exclusive
        self.name, self.source, self.settings = driver.name, driver.source, driver.settings

    def begin(self, service):
        self.driver.begin(service)

    def serve(self, service):
        self.driver.serve(service)
        areas = service.areas
        places = np.flatnonzero((areas.entries != 0) & (areas.entries & DPT_CANCELLED == 0))
        for place, va in zip(places.tolist(), areas.addresses(places).tolist(), strict=True):
            entry = int(areas.entries[place])
            assert entry & int(DPT_VALID)
            if self.exclusive:
                continue
            pfn, writable = cpu_mapping(self.spaces[0], va)
            assert entry & int(DPT_PFN) == pfn
            assert writable or not entry & int(DPT_WRITE)


def cpu_mapping(mm, va):
    pmd = mm.entry(va, 2)
    assert pmd & 1
    if pmd & 0x80:
        return (pmd >> 12 & PFN) + (va >> 12) % 512, bool(pmd & 2)
    pte = mm.entry(va, 1)
    assert pte & 1
    return pte >> 12 & PFN, bool(pte & 2)


def check_counts(result, device):
    table, counts = result.batches.astype([(n, np.int64) for n in result.batches.dtype.names]), result.totals
    assert result.finished
    assert len(device.reads) == len(table)
    for (faults, entries), row in zip(device.reads, table, strict=True):
        check_batch(faults, entries, row, device.areas)
    assert (table["pages_unasked"] <= table["pages_mapped"]).all()
    assert (table["pages_mapped"] - table["pages_unasked"] <= table["pages_asked"]).all()
    assert (table["start"] <= table["end"]).all()
    assert (table["end"][:-1] <= table["start"][1:]).all()
    assert counts["raw"] + counts["flushed"] == result.device.faults
    assert counts["overflows"] == result.device.overflows
    assert counts["replays"] == result.device.replays
    spent = sum(counts[name] for name in ("fetch_ns", "preprocess_ns", "service_ns", "replay_ns"))
    assert spent <= result.model_ns
    check_marks(result.timeline.marks(), table)


def check_batch(faults, entries, row, areas):
    of_page, utlbs = {}, set()
    for number in range(len(faults)):
        va, access = int(faults.va[number]), int(faults.access[number])
        of_page.setdefault(va, set()).add(access)
        utlbs.add((va, int(faults.utlb[number])))
    blocks = Counter(va >> 21 for va in of_page)
    covered = sum(
        all(entries[areas.place(0, va)] & ACCESS_NEEDS[access] == ACCESS_NEEDS[access] for access in accesses)
        for va, accesses in of_page.items()
    )
    assert row["raw"] == len(faults)
    assert row["unique"] == len(of_page)
    assert row["same_utlb"] == len(faults) - len(utlbs)
    assert row["cross_utlb"] == len(utlbs) - len(of_page)
    assert row["covered"] == covered
    assert row["va_blocks"] == len(blocks)
    assert row["most_in_block"] == max(blocks.values())
    assert row["unique"] <= row["coalesced"] <= row["raw"]


def check_marks(marks, table):
    assert (marks["start"] <= marks["end"]).all()
    assert (marks["batch"] < len(table)).all()
    served = marks[np.isin(marks["kind"], [1, 4])]
    assert (served["start"] >= table["start"][served["batch"]]).all()
    assert (served["end"] <= table["end"][served["batch"]]).all()
    batches = marks[marks["kind"] == 0]
    assert np.array_equal(batches["start"], table["start"])
    assert np.array_equal(batches["end"], table["end"])


def run(device, choice, layout, operation, seed, costs, atomics):
    name, chosen = choice
    spaces = spaces_over(device.areas, layout)
    cpu = None
    if operation is not None:
        cpu = CpuActivity(spaces, device.areas, per_ms=2, operation=operation, npages=3, seed=seed)
    exclusive = atomics and name == "nouveau" and chosen["version"] == "v6.1"
    driver = Checked(driver_named(name, chosen), spaces, exclusive)
    result = coalesce(device, spaces, driver, costs=COSTS[costs], backend="cpu", cpu=cpu)
    check_counts(result, device)
    check_invariants(spaces[0].memory)


ANYTHING = {
    "choice": CHOICES,
    "layout": st.sampled_from(sorted(LAYOUTS)),
    "operation": st.sampled_from([None, *sorted(OPERATIONS)]),
    "seed": st.integers(0, 9),
    "costs": st.sampled_from(sorted(COSTS)),
}


@settings(max_examples=100, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 699), st.integers(0, 4), st.integers(0, 3)),
        min_size=1,
        max_size=40,
    ),
    offset=st.sampled_from([0, 5, 511]),
    gap=st.sampled_from([0, 3, 700]),
    buffer_entries=st.sampled_from([3, 4096]),
    recorded=st.booleans(),
    **ANYTHING,
)
def test_counts_over_a_list_of_accesses(
    accesses, offset, gap, buffer_entries, recorded, choice, layout, operation, seed, costs
):
    """Two areas that begin anywhere in their VA blocks."""
    start = BASE + offset * PAGE
    middle = start + 400 * PAGE
    made = DeviceAreas([Area(0, start, middle), Area(0, middle + gap * PAGE, middle + (gap + 300) * PAGE)])
    va = made.addresses(np.array([page for _, page, _, _ in accesses])).tolist()
    rows = sorted((time, at, *rest) for at, (time, _, *rest) in zip(va, accesses, strict=True))
    if recorded:
        columns = dict(zip(("time", "va", "access", "utlb"), zip(*rows, strict=True), strict=True))
        trace = FaultTrace.of(**columns)
        device = RecordedDevice(trace, made, buffer_entries=buffer_entries)
    else:
        device = ScriptedDevice(made, rows, buffer_entries=buffer_entries)
    atomics = any(access >= 3 for _, _, access, _ in accesses)
    run(Watched(device), choice, layout, operation, seed, costs, atomics)


@settings(max_examples=25, deadline=None)
@given(pattern=st.sampled_from(["vector-add", "random", "regular"]), **ANYTHING)
def test_counts_over_a_gpu(pattern, choice, layout, operation, seed, costs):
    work = workload(pattern, **{"pages": 8, "prefetch": 1} if pattern == "vector-add" else {"pages": 300})
    run(Watched(Gpu(SMALL, work.program, work.areas, seed)), choice, layout, operation, seed, costs, False)


@pytest.mark.parametrize("name", sorted(DRIVERS))
def test_counts_without_faults(name):
    device = Watched(RecordedDevice(FaultTrace.empty()))
    result = coalesce(device, spaces_over(device.areas), driver_named(name), backend="cpu")
    assert result.finished
    assert len(result.batches) == result.totals["batches"] == 0
