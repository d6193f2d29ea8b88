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
        "focus-v6.12.npz",
        "focus-v6.18.npz",
        "focus-v7.3.npz",
        "rare-v5.18.npz",
        "rare-v6.1.npz",
        "shstk-v6.12.npz",
        "shstk-v6.18.npz",
        "shstk-v7.3.npz",
    ]
    assert [len(vectors.load(path)) for path in CASES] == [240, 240, 142, 142, 140, 300, 300, 6, 6, 3]


def test_only_the_shadow_stack_files_are_of_a_cpu_that_has_them():
    assert [path.stem.startswith("shstk") for path in CASES] == [
        vectors.load(path)[0].shstk for path in CASES
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_case_is_as_recorded(path, backend):
    check(path, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_case_of_the_larger_sets_is_as_recorded(backend):
    paths = sorted([*large_sets().glob("*.npz"), *large_sets().glob("new/*.npz")])
    assert paths
    for path in paths:
        check(path, backend)
