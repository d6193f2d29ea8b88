"""Calls of a running kernel that needed no fault: the page tables before them say everything."""

import numpy as np
import pytest
from recorded import FAULTLESS_LOOPS, LARGE_LOOPS, difference_from_record, large_sets

from gpuhmm.check.recorded import loops
from gpuhmm.hmm.words import HMM_PFN_REQ_FAULT

BACKENDS = ["reference", "cpu"]


def asks_for_nothing(case):
    asked = (case.hmm_pfns_in & np.uint64(case.pfn_flags_mask)) | np.uint64(case.default_flags)
    return not (asked & HMM_PFN_REQ_FAULT).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_recorded_calls_are_reproduced(backend):
    cases = list(loops.load(FAULTLESS_LOOPS).faultless())
    assert len(cases) == len(loops.load(FAULTLESS_LOOPS))
    assert sum(map(asks_for_nothing, cases)) >= 250
    wrong = {case.name: found for case in cases if (found := difference_from_record(case, backend))}
    assert not wrong


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_recorded_calls_without_a_fault_are_reproduced(backend):
    folder = large_sets() / LARGE_LOOPS
    count = 0
    for path in sorted(folder.glob("*.npz")):
        for case in loops.load(path).faultless():
            assert not difference_from_record(case, backend), case.name
            count += 1
    assert count > 10_000


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, rc=np.zeros(3))
    with pytest.raises(ValueError, match="must hold recorded driver loops"):
        loops.load(path)
