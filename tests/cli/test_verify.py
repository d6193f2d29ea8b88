"""``gpuhmm verify``: it finds a mistake, explains it, makes it small and can replay it."""

import json

import numpy as np
import pytest
from recorded import CASES
from typer.testing import CliRunner

from gpuhmm.check import vectors
from gpuhmm.check.campaign import Campaign
from gpuhmm.check.difference import differences
from gpuhmm.check.ptx.build import c_compiler
from gpuhmm.check.replay import recorded_outcome, replay
from gpuhmm.cli import app
from gpuhmm.hmm import backends


@pytest.fixture
def broken(monkeypatch):
    """Register a back end that is wrong about the zero page."""
    monkeypatch.setitem(backends.BACKENDS, "broken", "broken_backend")
    return "broken"


def run(*arguments):
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


def test_recorded_and_random_cases_agree():
    result = run(CASES[0], "--backend", "cpu", "--cases", 50, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["different"] == 0
    assert [(row["set"], row["cases"]) for row in report["sets"]] == [
        (str(CASES[0]), 240),
        ("random cases", 50),
    ]


def test_random_cases_may_be_of_one_kernel(broken, tmp_path):
    result = run("--backend", broken, "--cases", 60, "--kernel", "v7.3", "--save", tmp_path)
    assert result.exit_code == 1
    assert {case.kernel for path in tmp_path.iterdir() for case in vectors.load(path)} == {"v7.3"}
    assert run("--kernel", "v4.4").exit_code == 2


def test_a_broken_back_end_is_found_explained_and_made_small(broken, tmp_path):
    result = run("--backend", broken, "--cases", 60, "--save", tmp_path)
    assert result.exit_code == 1
    assert "VALID order 0, broken pfn 0x1a5f VALID WRITE order 0" in result.output
    (case,) = vectors.load(tmp_path / "difference-broken-1.npz")
    assert case.npages == 1
    assert len(case.vmas) == 1
    assert len(case.table_entries) == case.levels
    again = run(tmp_path, "--backend", broken, "--save", tmp_path / "again")
    assert again.exit_code == 1
    assert run(tmp_path, "--backend", "cpu", "--save", tmp_path / "again").exit_code == 0


def test_a_broken_back_end_is_found_in_recorded_cases(broken, tmp_path):
    campaign = Campaign(broken, "reference", tmp_path)
    for case in vectors.load(CASES[0]):
        campaign.check_recorded(case)
    assert campaign.different
    assert any("the record" in line for line in campaign.findings[0].differences)


@pytest.mark.parametrize("what", ["ret", "walks", "hmm_pfns", "events", "writes", "tables"])
def test_every_part_of_an_outcome_is_compared(what):
    case = next(case for case in vectors.load(CASES[0]) if len(case.recorded.writes) > 1)
    record, seen = recorded_outcome(case), replay(case, "reference")
    assert not differences(case, "record", record, "reference", seen)
    value = getattr(seen, what)
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flat[-3 if what == "events" else -1] ^= np.uint64(1)
    else:
        value += 1
    object.__setattr__(seen, what, value)
    assert len(differences(case, "record", record, "reference", seen)) == 1


def test_a_missing_call_and_one_too_many_are_told():
    case = next(case for case in vectors.load(CASES[0]) if len(case.recorded.events) > 3)
    record, seen = recorded_outcome(case), replay(case, "reference")
    object.__setattr__(seen, "events", seen.events[:-1])
    (line,) = differences(case, "record", record, "reference", seen)
    assert line.startswith(f"event {len(seen.events)}: record handle_mm_fault(0x")
    assert line.endswith("reference none")


def test_saved_cases_load_as_they_were(tmp_path):
    cases = list(vectors.load(CASES[2]))[:20]
    vectors.save(tmp_path / "some.npz", cases)
    for before, after in zip(cases, vectors.load(tmp_path / "some.npz"), strict=True):
        assert before.start == after.start
        assert before.highest_memmap_pfn == after.highest_memmap_pfn
        assert not differences(after, "saved", recorded_outcome(before), "loaded", recorded_outcome(after))


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    cases = list(vectors.load(CASES[0]))[:2]

    def full_disk(*_arguments, **_arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="No space left"):
        vectors.save(tmp_path / "some.npz", cases)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_cases(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match="lacks cases"):
        vectors.load(tmp_path / "other.npz")
    (tmp_path / "torn.npz").write_bytes(CASES[0].read_bytes()[:10_000])
    with pytest.raises(ValueError, match=r"must be a whole \.npz file"):
        vectors.load(tmp_path / "torn.npz")
    assert run(tmp_path / "torn.npz").exit_code == 1
    assert run(tmp_path / "missing.npz").exit_code == 2
    result = run(tmp_path, "--cases", 5, "--backend", "reference")
    assert result.exit_code == 0
    assert "2 .npz files hold no recorded calls" in result.output


def test_offsets_that_do_not_fit_are_refused(tmp_path):
    with np.load(CASES[0]) as archive:
        arrays = dict(archive)
    arrays["events_offsets"] = arrays["events_offsets"][::-1].copy()
    np.savez(tmp_path / "bent.npz", **arrays)
    with pytest.raises(ValueError, match="events_offsets must rise"):
        vectors.load(tmp_path / "bent.npz")


def test_the_ptx_machine_is_refused_where_it_cannot_run(monkeypatch):
    result = run("--backend", "cpu", "--ptx")
    assert result.exit_code == 2
    assert "--backend cuda" in result.output
    c_compiler.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    result = run("--backend", "cuda", "--ptx")
    assert result.exit_code == 1
    assert "needs a C compiler: install gcc or clang, or set CC (got no-such-compiler)" in str(
        result.exception
    )
    c_compiler.cache_clear()
