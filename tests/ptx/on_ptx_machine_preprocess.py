"""Preprocessing of recorded faults by compiled kernels; NumPy stands in for CuPy, which needs a GPU."""

import numpy as np
import pytest
from fault_traces import fault_traces, random_trace
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuhmm.coalesce.preprocess import coalesce_trace, cuda
from gpuhmm.coalesce.preprocess.rules import RULES
from gpuhmm.coalesce.trace import FaultTrace


@pytest.fixture(autouse=True, scope="module")
def numpy_for_cupy():
    """Let arrays of the host be arguments of kernels: numba copies them there and back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "_arrays", lambda: np)
        yield


@settings(max_examples=60, deadline=None, derandomize=True)
@given(fault_traces(40), st.integers(1, 50), st.sampled_from(list(RULES)))
def test_the_device_does_what_the_steps_do(trace, batch, rules):
    seen = [coalesce_trace(trace, batch, None, rules, backend) for backend in ("reference", "cuda")]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_and_few_threads_give_the_same(monkeypatch, threads):
    trace = random_trace(np.random.default_rng(threads), 300, 4, 3, 2)
    monkeypatch.setattr(cuda, "_MAX_THREADS", threads)
    monkeypatch.setattr(cuda, "_PART", 100)
    assert coalesce_trace(trace, 8, backend="cuda") == coalesce_trace(trace, 8, backend="reference")
    assert coalesce_trace(trace, 150, backend="cuda") == coalesce_trace(trace, 150, backend="reference")


def test_nothing():
    empty = FaultTrace.empty()
    assert coalesce_trace(empty, backend="cuda") == coalesce_trace(empty, backend="reference")
