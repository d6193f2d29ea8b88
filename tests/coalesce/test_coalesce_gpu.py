"""The modelled GPU: published counts, limits that hold, and the same run as plain objects make."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from coalesce_driver import serve
from coalesce_reference_gpu import ReferenceGpu
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuhmm.coalesce.access import ACCESS_NAMES, ACCESS_NEEDS
from gpuhmm.coalesce.areas import Area, DeviceAreas
from gpuhmm.coalesce.device.config import DEVICES, DeviceConfig, device_config
from gpuhmm.coalesce.device.gpu import Gpu
from gpuhmm.coalesce.device.machine import U_SKEW
from gpuhmm.coalesce.device.program import Program
from gpuhmm.coalesce.patterns import workload
from gpuhmm.mirror.page_table import DPT_VALID, DPT_WRITE

TITAN = DEVICES["titan-v"]
TINY = DeviceConfig(
    "tiny",
    gpcs=2,
    utlbs=2,
    sms=4,
    warps_per_sm=4,
    blocks_per_sm=2,
    threads_per_sm=128,
    utlb_outstanding=3,
    buffer_entries=5,
)


def gpu(name: str, config: DeviceConfig = TITAN, seed: int = 0, **parameters: Any) -> Gpu:
    work = workload(name, **parameters)
    return Gpu(config, work.program, work.areas, seed)


def test_vector_add_faults_in_the_published_batches() -> None:
    device = gpu("vector-add")
    seen = serve(device, keep=True)
    assert seen.raw == [56, 8, 32]
    assert device.done()
    places = [set(device.areas.places(t.space, t.va).tolist()) for t in seen.traces]
    # Areas of 32 pages: numbers are a 0..31, b 32..63, c 64..95.
    assert places[0] == set(range(32, 64)) | set(range(24))
    assert places[1] == set(range(24, 32))
    assert places[2] == set(range(64, 96))
    assert [set(t.access.tolist()) for t in seen.traces] == [{1}, {1}, {2}]
    # The recorded log of that program: 56 faults in about 0.9 µs.
    first = seen.traces[0].time
    assert 800 <= int(first[-1] - first[0]) <= 1000


def test_prefetches_reach_the_cap_of_a_batch() -> None:
    device = gpu("vector-add", pages=32 * 8, block=32, prefetch=1)
    assert serve(device, batch=256).raw[0] == 256
    one = gpu("vector-add", pages=96, block=96, prefetch=1)
    assert serve(one, batch=256).raw[0] == 256
    assert one.done()


def test_a_prefetch_that_faults_is_dropped() -> None:
    areas, program = small([[[[(0, [0, 1, 2], 0)]]]])
    device = Gpu(TINY, program, areas)
    assert device.read_put(10_000) == 3
    assert device.done()
    assert device.stalled() == 0
    device.write_get(3)
    device.replay(20_000)
    assert device.read_put(10**6) == 3


def test_dependent_accesses_wait_and_others_do_not() -> None:
    areas, program = small([[[[(1, [0], 0), (1, [1], 0), (2, [2], 1)]]]])
    device = Gpu(TINY, program, areas)
    assert device.read_put(10_000) == 2
    assert device.stalled() == 2


def test_barriers_hold_every_warp_of_the_block() -> None:
    areas, program = small([[[[(1, [0], 0), (1, [1], 2)], [(1, [2], 2)]]]])
    device = Gpu(TINY, program, areas)
    device.areas.entries[2] = DPT_VALID
    assert device.read_put(10_000) == 1
    device.areas.entries[0] = DPT_VALID
    device.replay(10_000)
    assert device.read_put(20_000) == 2
    assert device.counters.hits == 1


def test_kernels_run_one_after_the_other() -> None:
    areas, program = small([[[[(1, [0], 0)]]], [[]], [[[(1, [1], 0)]]]])
    device = Gpu(TINY, program, areas)
    assert device.read_put(10**6) == 1
    device.areas.entries[0] = DPT_VALID
    device.replay(10**6)
    assert device.read_put(2 * 10**6) == 2
    last = device.read(1, 2)
    assert int(last.time[0]) >= 10**6 + TINY.replay_latency_ns + TINY.launch_latency_ns
    assert int(device.areas.places(last.space, last.va)[0]) == 1


def test_duplicates_within_and_across_utlbs_are_faults_of_their_own() -> None:
    one = [[(1, [0], 0)], [(1, [0], 0)]]
    areas, program = small([[one, [[(1, [0], 0)]]]])
    device = Gpu(TINY, program, areas)
    assert device.read_put(10_000) == 3
    counters = device.counters
    assert (counters.same_utlb, counters.cross_utlb) == (1, 1)


@pytest.mark.parametrize("entries", [1, 7, 100])
def test_a_tiny_buffer_overflows_and_everything_still_completes(entries: int) -> None:
    device = gpu("stream", replace(TITAN, buffer_entries=entries), size=1 << 20)
    serve(device)
    assert device.done()
    assert device.stalled() == 0
    assert device.counters.overflows > 0
    assert (device.areas.entries != 0).all()


def test_the_same_seed_gives_the_same_run_and_another_one_does_not() -> None:
    def run(seed: int) -> Any:
        return serve(gpu("stream", seed=seed, size=6 << 20), keep=True).traces

    first, again, other = run(1), run(1), run(2)
    assert len(first) == len(again)
    assert all(a == b for a, b in zip(first, again, strict=True))
    assert len(first) != len(other) or any(a != b for a, b in zip(first, other, strict=True))


def test_entries_say_who_faulted() -> None:
    device = gpu("regular", pages=8192)
    trace = serve(device, keep=True).traces[0]
    assert (trace.utlb == trace.sm // 2).all()
    assert set(trace.gpc.tolist()) == set(range(6))
    assert trace.client.max() < 14
    assert len(np.unique(trace.utlb)) == 40
    trace.check()


def test_a_fault_may_be_reported_before_now() -> None:
    device = gpu("vector-add")
    device.read_put(10**6)
    assert device.next_fault(10**6) < 10**6


def test_nothing_more_comes_without_a_replay() -> None:
    device = gpu("vector-add")
    assert device.next_fault(0) is not None
    device.write_get(device.read_put(10**6))
    assert device.next_fault(10**6) is None
    assert not device.done()
    assert device.stalled() == 56


# -- against plain objects ------------------------------------------------------------------------

Ops = list[tuple[int, list[int], int]]


def small(kernels: list[list[list[Ops]]], npages: int = 12, threads: int = 64) -> tuple[DeviceAreas, Program]:
    """Make a program of kernels of blocks of warps of (access, pages, flags)."""

    def offsets(counts: list[int]) -> Any:
        return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)

    blocks = [block for kernel in kernels for block in kernel]
    warps = [warp for block in blocks for warp in block]
    ops = [op for warp in warps for op in warp]
    program = Program(
        kernel_blocks=offsets([len(kernel) for kernel in kernels]),
        kernel_threads=np.full(len(kernels), threads, dtype=np.int64),
        kernel_residency=np.arange(len(kernels), dtype=np.int64) % 3,
        block_warps=offsets([len(block) for block in blocks]),
        warp_ops=offsets([len(warp) for warp in warps]),
        op_pages=offsets([len(op[1]) for op in ops]),
        op_access=np.array([op[0] for op in ops], dtype=np.uint8),
        op_flags=np.array([op[2] for op in ops], dtype=np.uint8),
        pages=np.array([page for op in ops for page in op[1]], dtype=np.uint32),
    )
    return DeviceAreas([Area(0, 1 << 40, (1 << 40) + npages * 4096)]), program


@st.composite
def programs(draw: st.DrawFn) -> list[list[list[Ops]]]:
    op = st.tuples(
        st.integers(0, len(ACCESS_NAMES) - 1),
        st.lists(st.integers(0, 11), max_size=6),
        st.sampled_from([0, 0, 1]),
    )

    def block(barriers: list[int]) -> st.SearchStrategy[list[Ops]]:
        # Every warp comes to the same number of barriers, or none does.
        one = st.lists(op, max_size=4).map(lambda ops: [*ops, *((1, [at], 2) for at in barriers)])
        return st.lists(one, min_size=1, max_size=2)

    blocks = st.lists(st.integers(0, 11), max_size=2).flatmap(block)
    return draw(st.lists(st.lists(blocks, max_size=7), min_size=1, max_size=3))


configs = st.builds(
    lambda **fields: replace(TINY, **fields),
    utlb_outstanding=st.integers(1, 6),
    buffer_entries=st.integers(1, 9),
    issue_jitter_ns=st.sampled_from([0, 7, 300]),
    replay_jitter_ns=st.sampled_from([0, 90]),
    hit_interval_ns=st.sampled_from([0, 1, 20]),
    access_latency_ns=st.sampled_from([0, 500]),
    utlbs=st.sampled_from([2, 4]),
)


@settings(max_examples=150, deadline=None)
@given(programs(), configs, st.integers(0, 5), st.data())
def test_the_compiled_device_does_what_plain_objects_do(
    kernels: list[list[list[Ops]]], config: DeviceConfig, seed: int, data: st.DataObject
) -> None:
    areas, program = small(kernels)
    device = Gpu(config, program, areas, seed)
    plain = ReferenceGpu(config, program, areas.npages, seed, device._machine.utlb[:, U_SKEW].tolist())
    now = get = read = 0
    for turn in range(400):
        found = device.next_fault(now)
        plain.run(1 << 61, until_fault=True)
        assert (found is None) == (len(plain.log) == plain.get)
        if found is None:
            break
        assert found == plain.log[plain.get][0]
        now = max(now, found) + data.draw(st.sampled_from([0, 50, 3000]), label="late")
        put = device.read_put(now)
        plain.run(now)
        assert put == len(plain.log)
        past = min(put, get + data.draw(st.integers(1, 6), label="batch"))
        trace = device.read(read, put)
        places = areas.places(trace.space, trace.va).tolist()
        rows = zip(trace.time.tolist(), places, trace.access.tolist(), trace.sm.tolist(), strict=True)
        assert list(rows) == plain.log[read:put]
        for _, page, access, _ in plain.log[get:past]:
            bits = DPT_VALID | DPT_WRITE if turn > 300 else ACCESS_NEEDS[access]
            areas.entries[page] |= np.uint64(bits)
            plain.entries[page] = areas.entries[page]
        get = put if data.draw(st.booleans(), label="flush") else past
        read = get
        device.write_get(get)
        plain.get = get
        plain.prefetches = data.draw(st.booleans(), label="prefetches")
        device.report_prefetches(plain.prefetches)
        for _ in range(data.draw(st.integers(1, 2), label="replays")):
            device.replay(now)
            plain.replay(now)
            now += data.draw(st.sampled_from([0, 40, 2000]), label="between")
        assert device.outstanding().tolist() == [len(u.out) + len(u.again or []) for u in plain.utlbs]
        assert device.outstanding().max() <= config.utlb_outstanding
    assert device.done()
    assert plain.done()
    assert plain.most <= config.utlb_outstanding
    counters = device.counters
    assert counters.faults == len(plain.log)
    assert (counters.same_utlb, counters.cross_utlb) == (plain.same, plain.cross)
    assert (counters.refaults, counters.overflows) == (plain.refaults, plain.overflows)
    assert (counters.accesses, counters.hits) == (plain.accesses, plain.hits)
    assert counters.accesses == len(program.pages)
    needed = program.touched(areas.npages)
    assert ((areas.entries != 0) >= needed).all()
    assert ((areas.entries & np.uint64(DPT_WRITE) != 0) >= program.written(areas.npages)).all()


# -- bad input ------------------------------------------------------------------------------------


def test_a_device_must_make_sense() -> None:
    with pytest.raises(ValueError, match="utlb_outstanding must be within 1"):
        replace(TITAN, utlb_outstanding=0)
    with pytest.raises(TypeError, match="sms must be a whole number"):
        replace(TITAN, sms=80.0)
    with pytest.raises(ValueError, match="sms must be a multiple of utlbs"):
        replace(TITAN, sms=81)
    with pytest.raises(ValueError, match="gpcs must be at most utlbs"):
        replace(TITAN, gpcs=41)
    with pytest.raises(ValueError, match="a device must be one of titan-v"):
        device_config("gtx")
    with pytest.raises(ValueError, match="a device has the fields"):
        device_config("titan-v", {"lanes": 3})
    with pytest.raises(ValueError, match="buffer_entries must be a whole number"):
        device_config("titan-v", {"buffer_entries": "many"})
    assert device_config("titan-v", {"buffer_entries": "64"}).buffer_entries == 64


def test_a_program_must_fit_its_areas_and_its_device() -> None:
    areas, program = small([[[[(1, [0, 11], 0)]]]])
    with pytest.raises(ValueError, match="pages must be below 11"):
        program.check(11)
    with pytest.raises(ValueError, match="warp_ops must rise from 0 to 1"):
        replace(program, warp_ops=np.array([0, 2])).check(12)
    with pytest.raises(ValueError, match="op_access must be below 5"):
        replace(program, op_access=np.array([5], dtype=np.uint8)).check(12)
    with pytest.raises(ValueError, match="op_flags"):
        replace(program, op_flags=np.array([4], dtype=np.uint8)).check(12)
    with pytest.raises(TypeError, match="pages must be a numpy array of uint32"):
        replace(program, pages=np.array([0, 1])).check(12)
    with pytest.raises(ValueError, match="blocks must have at most 4 warps"):
        Gpu(TINY, replace(program, kernel_threads=np.array([160])), areas)
    two = small([[[[(1, [0], 0)], [(1, [0], 0)]]]])[1]
    with pytest.raises(ValueError, match="block 0 must have at most 1 warps"):
        replace(two, kernel_threads=np.array([32])).check(12)
    with pytest.raises(ValueError, match="seed must be"):
        Gpu(TINY, program, areas, -1)


def test_a_driver_must_stay_within_the_buffer() -> None:
    device = gpu("vector-add")
    put = device.read_put(10**6)
    with pytest.raises(ValueError, match="entries must be within 0 and 56"):
        device.read(0, put + 1)
    with pytest.raises(ValueError, match="GET must be within"):
        device.write_get(put + 1)
    with pytest.raises(ValueError, match="times must be whole ns"):
        device.replay(-1)
