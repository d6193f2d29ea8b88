"""The fixture of tests that only a CUDA device can run."""

import pytest

import gpuhmm


@pytest.fixture(autouse=True, scope="module")
def device():
    """Skip where no CUDA device can be used; the simulator has tests of its own."""
    try:
        info = gpuhmm.resolve_backend("cuda")
    except gpuhmm.BackendError as error:
        pytest.skip(str(error))
    if info.device == "CUDA simulator":
        pytest.skip("the simulator is no CUDA device")
