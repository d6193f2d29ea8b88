"""On a CUDA device: recorded traces come out as on the CPU."""

import numpy as np
import pytest
from cuda_device import device  # noqa: F401
from fault_traces import random_trace

from gpuhmm.coalesce.preprocess import coalesce_trace
from gpuhmm.coalesce.preprocess.rules import RULES

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("batch", [1, 256, 65536])
@pytest.mark.parametrize("pages", [5, 5000, 1 << 44])
def test_the_device_does_what_the_cpu_does(rules, batch, pages):
    pytest.importorskip("cupy")
    rng = np.random.default_rng(pages)
    # More faults than are on the device at once.
    trace = random_trace(rng, (1 << 22) + 1000 if batch > 1 else 10_000, pages, 80, 2)
    seen = [coalesce_trace(trace, batch, rules=rules, backend=backend) for backend in ("cpu", "cuda")]
    assert seen[0] == seen[1]
