"""Every recorded case of the kernel's own C, on both back ends that run at full size here."""

import pytest
from recorded import CASES, difference_from_record, large_sets

from gpuhmm.check import vectors

BACKENDS = ["reference", "cpu"]


def check(path, backend):
    file = vectors.load(path)
    assert len(file)
    wrong = {case.name: found for case in file if (found := difference_from_record(case, backend))}
    assert not wrong


def test_the_recorded_cases_are_all_here():
    assert [path.name for path in CASES] == [
        "core-v5.18.npz",
        "core-v6.1.npz",
        "rare-v5.18.npz",
        "rare-v6.1.npz",
    ]
    assert [len(vectors.load(path)) for path in CASES] == [240, 240, 300, 300]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_case_is_as_recorded(path, backend):
    check(path, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_case_of_the_larger_sets_is_as_recorded(backend):
    paths = sorted(large_sets().glob("*.npz"))
    assert paths
    for path in paths:
        check(path, backend)
