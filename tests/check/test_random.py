"""Random spaces and requests: the batch walk against the sequential reference."""

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuhmm.check.difference import differences
from gpuhmm.check.random_case import random_case
from gpuhmm.check.replay import replay
from gpuhmm.kernels.paths import PATHS
from gpuhmm.mm.profile import PROFILES


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_cpu_gives_what_the_reference_gives(rng):
    case = random_case(rng, "steered by hypothesis", max_pages=4096)
    found = differences(case, "reference", replay(case, "reference"), "cpu", replay(case, "cpu"))
    assert not found, (case.name, found)


@pytest.mark.parametrize("past_caches_from", [0, 1 << 40])
@pytest.mark.parametrize("parallel_from", [0, 1 << 40])
def test_cpu_gives_the_same_on_every_path(monkeypatch, parallel_from, past_caches_from):
    """On one thread and on several, with stores past the caches and into them."""
    monkeypatch.setattr(PATHS, "parallel_from", parallel_from)
    monkeypatch.setattr(PATHS, "past_caches_from", past_caches_from)
    for seed in range(200):
        case = random_case(random.Random(seed), f"random case {seed}", max_pages=1 << 15)
        found = differences(case, "reference", replay(case, "reference"), "cpu", replay(case, "cpu"))
        assert not found, (case.name, found)


def test_random_cases_meet_every_outcome():
    cases = [random_case(random.Random(seed), "") for seed in range(300)]
    assert {case.kernel for case in cases} == set(PROFILES)
    outcomes = [replay(case, "reference") for case in cases]
    returned = {outcome.ret for outcome in outcomes}
    assert returned == {0, -1, -12, -14, -16}
    kinds = np.unique(np.concatenate([outcome.events[:, 0] for outcome in outcomes]))
    assert kinds.tolist() == [1, 2, 3, 4]
    assert sum(outcome.ret == 0 and len(outcome.events) > 0 for outcome in outcomes) > 10


def test_a_seed_names_a_case():
    first, second = (random_case(random.Random(17), "x") for _ in range(2))
    assert (first.start, first.end, first.default_flags) == (second.start, second.end, second.default_flags)
    assert np.array_equal(first.table_entries, second.table_entries)
    assert np.array_equal(first.hmm_pfns_in, second.hmm_pfns_in)
