"""What tests of a CUDA device share: the fixture, and how much of it the PTX machine does."""

import os
import sys

import pytest

import gpuhmm

#: Set by hand for a campaign on the PTX machine: random cases of each kind, and every recorded case.
_PTX_CASES = int(os.environ.get("GPUHMM_PTX_CASES", "0"))
#: Within the suite the machine does one recorded case of so many.
_ONE_OF = 7


@pytest.fixture(autouse=True, scope="module")
def device():
    """Skip where no CUDA device can be used; the simulator has tests of its own."""
    try:
        info = gpuhmm.resolve_backend("cuda")
    except gpuhmm.BackendError as error:
        pytest.skip(str(error))
    if info.device == "CUDA simulator":
        pytest.skip("the simulator is no CUDA device")


def whole():
    """Return True on a GPU and in a campaign."""
    return "ptx_machine" not in sys.modules or bool(_PTX_CASES)


def part_of(cases):
    """Return all cases, or within the suite some of them for the PTX machine."""
    return cases if whole() else [cases[i] for i in range(0, len(cases), _ONE_OF)]


def random_seeds(few, first=0):
    """Return the seeds of ``few`` random cases, or of as many as a campaign asks for."""
    return range(first, first + (_PTX_CASES or few))
