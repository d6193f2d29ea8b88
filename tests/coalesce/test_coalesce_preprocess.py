"""Whole traces at once: the same as step by step, on every path."""

import importlib.util
import sys

import numpy as np
import pytest
from fault_traces import fault_traces, random_trace
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuhmm.coalesce.preprocess import COUNTS, coalesce_trace, cpu
from gpuhmm.coalesce.preprocess.columns import sorted_batches, unmerged
from gpuhmm.coalesce.preprocess.merge import merge_batch
from gpuhmm.coalesce.preprocess.rules import RULES, rules_of
from gpuhmm.coalesce.trace import FaultTrace

WINDOWS = [1 << shift for shift in range(12, 22)]


@settings(max_examples=400, deadline=None)
@given(fault_traces(), st.integers(1, 70), st.sampled_from(WINDOWS), st.sampled_from(list(RULES)))
def test_the_cpu_does_what_the_steps_do(trace, batch, window, rules):
    window = window if RULES[rules].any_window else None
    seen = [coalesce_trace(trace, batch, window, rules, backend) for backend in ("reference", "cpu")]
    assert seen[0] == seen[1]


@settings(max_examples=150, deadline=None)
@given(fault_traces(), st.integers(1, 70), st.sampled_from(WINDOWS), st.sampled_from(list(RULES)))
def test_whole_columns_do_what_the_steps_do(trace, batch, window, rules):
    window = window if RULES[rules].any_window else None
    rules, batch, window = rules_of(rules, batch, window)
    expected = coalesce_trace(trace, batch, window, rules.name, "reference")
    if not len(trace):
        return
    columns = (trace.va, trace.access, trace.space, trace.utlb)
    merged = unmerged(np, batch, trace.access)
    if rules.merge:
        last_of_utlb = np.zeros(trace.utlbs, dtype=np.uint64)
        for low in range(0, len(trace), batch):
            part = slice(low, low + batch)
            some = [column[part] for column in (*columns[:4], *merged)]
            count = np.uint64(len(some[0]))
            merge_batch(count, np.uint64(low), np.uint64(0), *some[:4], last_of_utlb, *some[4:])
    ranks = np.array(rules.ranks, dtype=np.uint8)
    found = sorted_batches(np, batch, window.bit_length() - 13, ranks, columns, merged)
    wanted = (expected.index, expected.instances, expected.masks, expected.flags, expected.counts)
    assert np.array_equal(merged[0], expected.representative)
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == want.dtype
        assert np.array_equal(got, want)


@pytest.mark.parametrize("batch", [1, 24, 25, 256, 5000, 65536])
@pytest.mark.parametrize("pages", [3, 3000, 1 << 44])
def test_many_faults_on_several_threads(batch, pages):
    rng = np.random.default_rng(pages + batch)
    trace = random_trace(rng, 20_000, pages, 7, 3)
    assert len(trace) > cpu._SEQUENTIAL_FAULTS
    expected = coalesce_trace(trace, batch, backend="reference")
    assert coalesce_trace(trace, batch, backend="cpu") == expected


def test_a_batch_of_one_page_has_as_many_instances_as_fit():
    trace = FaultTrace.of(va=np.full(1 << 17, 0x1000, dtype=np.uint64))
    table = coalesce_trace(trace, 1 << 16, backend="cpu")
    assert table.instances.tolist() == [1 << 16] * 2
    assert table.count("same_utlb").tolist() == [(1 << 16) - 1] * 2
    assert table.updates_put().tolist() == [True, True]


def test_what_the_columns_say():
    block = 1 << 21
    trace = FaultTrace.of(
        va=np.array([block, 0x1000, 0x1000, block, 0x2000, 0x1000, 0x5000], dtype=np.uint64),
        access=[1, 1, 2, 1, 1, 1, 1],
        utlb=[0, 1, 1, 0, 2, 0, 0],
    )
    table = coalesce_trace(trace, 6, backend="cpu")
    assert len(table) == 2
    assert table.representative.tolist() == [0, 2, 2, 0, 4, 5, 0]
    assert table.firsts.tolist() == [0, 4, 5]
    assert table.index.tolist() == [2, 5, 4, 0, 0]
    assert table.rows().tolist() == [2, 5, 4, 0, 6]
    assert table.batches().tolist() == [0, 0, 0, 0, 1]
    assert table.instances.tolist() == [2, 1, 1, 2, 1]
    assert table.masks.tolist() == [6, 2, 2, 2, 2]
    assert table.flags.tolist() == [2, 1, 0, 2, 2]
    assert table.group_firsts().tolist() == [0, 3, 4, 5]
    assert dict(zip(COUNTS, table.counts.T[0].tolist(), strict=True)) == {
        "raw": 6,
        "coalesced": 4,
        "unique_pages": 3,
        "same_utlb": 2,
        "cross_utlb": 1,
        "windows": 2,
        "most_in_window": 4,
        "counted_duplicates": 3,
    }
    assert table.updates_put().tolist() == [False, False]
    assert table.updates_put(49).tolist() == [True, False]
    assert table.totals()["raw"] == 7
    assert table.totals()["most_in_window"] == 4


def test_nouveau_takes_the_least_intrusive_first():
    trace = FaultTrace.of(va=[0x2000, 0x1000, 0x1000, 0x1000], access=[1, 4, 2, 0], utlb=[0] * 4)
    table = coalesce_trace(trace, rules="nouveau", backend="cpu")
    assert table.index.tolist() == [3, 2, 1, 0]
    assert table.flags.tolist() == [2, 1, 1, 2]
    assert table.representative.tolist() == [0, 1, 2, 3]
    # Both atomics have one rank there.
    atomics = FaultTrace.of(va=[0x1000, 0x1000], access=[4, 3])
    assert coalesce_trace(atomics, rules="nouveau", backend="cpu").index.tolist() == [0, 1]


def test_random_addresses_hit_as_many_blocks_as_expected():
    blocks, drawn, batches = 300, 256, 400
    rng = np.random.default_rng(2021)
    trace = random_trace(rng, drawn * batches, blocks * 512, 80)
    found = coalesce_trace(trace, drawn, backend="cpu").count("windows")
    missed, both = (1 - 1 / blocks) ** drawn, (1 - 2 / blocks) ** drawn
    variance = blocks * missed + blocks * (blocks - 1) * both - (blocks * missed) ** 2
    assert abs(found.mean() - blocks * (1 - missed)) <= 4 * (variance / batches) ** 0.5
    assert 0.5 < found.var() / variance < 2


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("rules", RULES)
def test_an_empty_trace_has_no_batches(backend, rules):
    table = coalesce_trace(FaultTrace.empty(), rules=rules, backend=backend)
    assert len(table) == 0
    assert table.counts.shape == (len(COUNTS), 0)
    assert table.totals()["raw"] == 0
    assert table.group_firsts().tolist() == [0]
    assert coalesce_trace(FaultTrace.empty(), rules=rules, backend="cpu") == table


def test_bad_arguments():
    trace = FaultTrace.of(va=[0x1000])
    for arguments, wrong in [
        ({"batch": 0}, "batch must be 1 to 65536"),
        ({"batch": 65537}, "batch must be 1 to 65536"),
        ({"window": 2048}, "window must be a power of two"),
        ({"window": 3 << 12}, "window must be a power of two"),
        ({"window": 1 << 22}, "window must be a power of two"),
        ({"rules": "amd"}, "rules must be one of uvm"),
        ({"rules": "nouveau", "window": 1 << 21}, "the window of nouveau is 4096"),
        ({"backend": "gpu"}, "backend must be auto"),
    ]:
        with pytest.raises(ValueError, match=wrong):
            coalesce_trace(trace, **{"backend": "cpu", **arguments})
    with pytest.raises(TypeError, match="trace must be a FaultTrace"):
        coalesce_trace(np.zeros(3, dtype=np.uint64))
    with pytest.raises(ValueError, match="a count must be one of"):
        coalesce_trace(trace, backend="cpu").count("faults")


@pytest.mark.parametrize(
    ("column", "value", "wrong"),
    [
        ("access", 5, "access of fault 1"),
        ("va", 0x1001, "va of fault 1"),
        ("va", 1 << 56, "va of fault 1"),
        ("time", 0, "time of fault 1"),
    ],
)
def test_faults_that_cannot_be_are_refused(column, value, wrong):
    trace = FaultTrace.of(va=[0x1000] * 3, time=[5, 5, 5])
    getattr(trace, column)[1] = value
    with pytest.raises(ValueError, match=wrong):
        coalesce_trace(trace, backend="cpu")


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is there")
def test_without_cupy_the_cuda_path_says_what_to_install(monkeypatch):
    from gpuhmm.coalesce.preprocess import cuda

    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r"needs CuPy: pip install 'gpuhmm\[cuda13\]'"):
        cuda.coalesce(FaultTrace.of(va=[0x1000]), RULES["uvm"], 256, 1 << 21)
