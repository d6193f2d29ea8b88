"""VA blocks that are asked for together come out as if they were asked for one after the other."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_runs import BASE, PAGE, Interference, device, run, space_of

from gpuhmm.coalesce.costs import COSTS
from gpuhmm.coalesce.layouts import LAYOUTS
from gpuhmm.coalesce.ranges import RangeRequest, serve_ranges
from gpuhmm.coalesce.service import FaultService
from gpuhmm.hmm.words import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE
from gpuhmm.mm.vma import VM_READ


@settings(max_examples=60, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(st.integers(0, 200_000), st.integers(0, 2099), st.integers(0, 4), st.integers(0, 5)),
        min_size=1,
        max_size=80,
    ),
    layout=st.sampled_from(sorted(LAYOUTS)),
    batch=st.sampled_from([7, 256]),
    replay=st.sampled_from(["batch", "batch-flush", "once"]),
    prefetch=st.booleans(),
    protected=st.booleans(),
    costs=st.sampled_from(sorted(COSTS)),
)
def test_blocks_together_and_one_by_one(accesses, layout, batch, replay, prefetch, protected, costs):
    results = []
    for cpu in (None, Interference(lambda n: None)):
        a_device = device(accesses, 2100)
        spaces = space_of(a_device, layout)
        if protected:
            start = a_device.areas.areas[0].start
            spaces[0].mprotect(start + 100 * 4096, start + 700 * 4096, VM_READ)
        chosen = {"batch": batch, "replay": replay, "prefetch": prefetch}
        result = run(a_device, "uvm", chosen, spaces=spaces, cpu=cpu, costs=COSTS[costs])
        results.append((result, a_device))
    (together, one), (alone, other) = results
    assert together.model_ns == alone.model_ns
    for name in together.batches.dtype.names:
        assert together.batches[name].tolist() == alone.batches[name].tolist(), name
    assert together.device == alone.device
    assert np.array_equal(one.areas.entries, other.areas.entries)


def test_stale_ranges_are_asked_for_again_in_their_order():
    a_device = device([(0, 0, 2, 0)])
    service = FaultService(a_device, space_of(a_device, "forked"), COSTS["sc21-titan-v"], "cpu")
    requests = []
    for block in range(3):
        start = BASE + (block << 21)
        notifier = service.notifier(0, start, start + (1 << 21))
        flags = int(HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE)
        asked = np.ones(2, dtype=np.bool_)
        requests.append(RangeRequest(0, start, start + 2 * PAGE, notifier, asked, default_flags=flags))
    assert serve_ranges(service, requests) == [0, 0, 0]
    assert service.batch.ebusy == 3
    marks = service.timeline.marks()
    tried = [(int(mark["va"]) - BASE) >> 21 for mark in marks[np.isin(marks["kind"], [1, 4])]]
    assert tried == [0, 1, 2, 0, 1, 2]
