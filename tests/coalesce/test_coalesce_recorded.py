"""A recorded trace as a device: delivered at its times, and again while pages are missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from coalesce_driver import serve
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuhmm.coalesce.access import ACCESS_NEEDS
from gpuhmm.coalesce.areas import Area, DeviceAreas
from gpuhmm.coalesce.device.recorded import RecordedDevice
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.mirror.page_table import DPT_VALID, DPT_WRITE

BASE = 1 << 40


def trace_of(rows: list[tuple[int, int, int, int]]) -> FaultTrace:
    """Make a trace of (time, page, access, µTLB)."""
    columns = np.array(rows, dtype=np.uint64).reshape(-1, 4)
    return FaultTrace.of(
        time=columns[:, 0], va=BASE + (columns[:, 1] << 12), access=columns[:, 2], utlb=columns[:, 3]
    )


def test_faults_come_at_their_times() -> None:
    device = RecordedDevice(trace_of([(1000, 1, 1, 0), (1000, 2, 1, 3), (1070, 3, 2, 1)]))
    assert device.utlbs == 4
    assert device.next_fault(0) == 0
    assert device.read_put(69) == 2
    assert device.read_put(70) == 3
    found = device.read(0, 3)
    assert found.time.tolist() == [0, 0, 70]
    assert found.utlb.tolist() == [0, 3, 1]
    assert device.stalled() == 3
    assert not device.done()


def test_a_page_that_is_mapped_is_delivered_all_the_same() -> None:
    device = RecordedDevice(trace_of([(0, 1, 1, 0), (500, 1, 1, 0)]))
    device.areas.entries[:] = DPT_VALID
    assert device.read_put(500) == 2
    assert device.counters.hits == 2
    assert device.counters.same_utlb == 1


def test_what_is_not_mapped_comes_again_after_a_replay() -> None:
    device = RecordedDevice(trace_of([(0, 1, 1, 0), (0, 2, 2, 0), (0, 3, 0, 0)]), replay_latency_ns=100)
    device.areas.entries[:] = DPT_VALID  # which is enough for the read only
    device.write_get(device.read_put(10))
    assert device.next_fault(10) is None
    device.replay(1000)
    assert device.read_put(1099) == 3
    assert device.next_fault(1099) == 1100
    again = device.read(3, device.read_put(1100))
    assert again.va.tolist() == [BASE + 0x2000]
    assert again.time.tolist() == [1100]
    device.areas.entries[:] = DPT_VALID | DPT_WRITE
    device.write_get(4)
    assert not device.done()
    device.replay(2000)
    assert device.done()
    assert device.counters.refaults == 1


def test_what_is_in_the_buffer_stays_there_over_a_replay() -> None:
    device = RecordedDevice(trace_of([(0, 1, 1, 0), (0, 2, 1, 0)]))
    device.read_put(0)
    device.write_get(1)
    device.replay(10)
    assert device.read_put(10**6) == 3
    assert device.read(1, 3).va.tolist() == [BASE + 0x2000, BASE + 0x1000]


def test_a_full_buffer_puts_faults_off_until_a_replay() -> None:
    device = RecordedDevice(trace_of([(n, n, 1, 0) for n in range(5)]), buffer_entries=2)
    assert device.read_put(100) == 2
    assert device.counters.overflows == 3
    assert device.next_fault(100) == 0
    seen = serve(device)
    assert device.done()
    assert sum(seen.raw) == 5
    assert device.counters.refaults == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 5), st.integers(0, 4), st.integers(0, 2)), max_size=25
    ),
    st.integers(1, 8),
    st.data(),
)
def test_a_recorded_device_keeps_its_rules(rows: list[Any], entries: int, data: st.DataObject) -> None:
    """Against lists: everything recorded comes or is put off; after replays, what is still missing."""
    rows = sorted(rows, key=lambda row: row[0])
    areas = DeviceAreas([Area(0, BASE, BASE + 6 * 4096)])
    device = RecordedDevice(trace_of(rows), areas, buffer_entries=entries, replay_latency_ns=7)
    start = rows[0][0] if rows else 0
    coming = [(time - start, number) for number, (time, *_) in enumerate(rows)]
    again: list[tuple[int, int]] = []
    waiting: list[int] = []
    log: list[tuple[int, int]] = []
    get = now = overflows = 0
    for turn in range(60):
        now += data.draw(st.integers(0, 20), label="on")
        while True:
            first = min(coming[:1] + again[:1], key=lambda one: one[0], default=None)
            if again and coming and again[0][0] <= coming[0][0]:
                first = again[0]
            if first is None or first[0] > now:
                break
            (again if again and first is again[0] else coming).pop(0)
            if len(log) - get == entries:
                overflows += 1
                if rows[first[1]][2]:
                    waiting.append(first[1])
            else:
                log.append(first)
        assert device.read_put(now) == len(log)
        found = device.read(get, len(log))
        assert found.time.tolist() == [time for time, _ in log[get:]]
        assert found.va.tolist() == [BASE + (rows[number][1] << 12) for _, number in log[get:]]
        assert device.counters.overflows == overflows
        if turn > 40:
            areas.entries[:] = DPT_VALID | DPT_WRITE
        elif data.draw(st.booleans(), label="map"):
            page, bits = (
                data.draw(st.integers(0, 5)),
                data.draw(st.sampled_from([DPT_VALID, DPT_VALID | DPT_WRITE])),
            )
            areas.entries[page] = bits
        past = data.draw(st.integers(get, len(log)), label="get") if turn < 40 else len(log)
        waiting += [number for _, number in log[get:past] if rows[number][2]]
        get = past
        device.write_get(get)
        if turn >= 40 or data.draw(st.booleans(), label="replay"):
            device.replay(now)
            for number in waiting:
                needs = ACCESS_NEEDS[rows[number][2]]
                if int(areas.entries[rows[number][1]]) & needs != needs:
                    again.append((now + 7, number))
            waiting = []
        assert device.stalled() == len(waiting) + len(again) + len(log) - get
        assert device.done() == (not coming and device.stalled() == 0)
    assert device.counters.faults == len(log)


def test_an_empty_trace_is_done() -> None:
    device = RecordedDevice(FaultTrace.empty())
    assert device.done()
    assert device.next_fault(0) is None


def test_bad_arguments_are_refused() -> None:
    trace = trace_of([(0, 9, 1, 0)])
    with pytest.raises(ValueError, match="areas must hold every page"):
        RecordedDevice(trace, DeviceAreas([Area(0, BASE, BASE + 4096)]))
    with pytest.raises(ValueError, match="buffer_entries must be within"):
        RecordedDevice(trace, buffer_entries=0)
    with pytest.raises(ValueError, match="replay_latency_ns must be within"):
        RecordedDevice(trace, replay_latency_ns=-1)
    device = RecordedDevice(trace)
    with pytest.raises(ValueError, match="entries must be within 0 and 0"):
        device.read(0, 1)
    with pytest.raises(ValueError, match="times must be whole ns"):
        device.replay(-1)
