"""gpuhmm validate: the exact rows, what a wrong one does, and how rows are written."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from gpuhmm.cli import app
from gpuhmm.coalesce.validate import row as rows_of
from gpuhmm.coalesce.validate import sc21, validate
from gpuhmm.coalesce.validate.report import counts, markdown, values
from gpuhmm.coalesce.validate.row import Row, exact, within_factor


@pytest.fixture(scope="module")
def exact_rows():
    return validate(exact_only=True)


def test_every_exact_row_passes(exact_rows):
    assert len(exact_rows) >= 12
    assert [row.name for row in exact_rows if not row.passed] == []
    assert {row.kind for row in exact_rows} == {"exact"}


def test_another_seed_gives_the_same_verdicts(exact_rows):
    other = validate(exact_only=True, seed=5)
    assert [row.verdict for row in other] == [row.verdict for row in exact_rows]


def test_tolerances():
    row = within_factor("a", "b", "c", 10.0, 19.9)
    assert row.passed
    assert not within_factor("a", "b", "c", 10.0, 20.1).passed
    assert within_factor("a", "b", "c", 10.0, 4.9).verdict == "FAIL"
    assert within_factor("a", "b", "c", 10.0, 4.9).shown_reason == "not known"
    assert exact("a", "b", "c", 56, 56).verdict == "pass"
    assert exact("a", "b", "c", 56, 57).verdict == "FAIL"
    put_in = Row("a", "calibrated", "b", "c", 1, 99, 0, 1)
    assert (put_in.verdict, put_in.shown_reason) == ("calibrated", "")
    with pytest.raises(ValueError, match="kind must be one of"):
        Row("a", "guessed", "b", "c", 1, 1, 1, 1)


def test_the_page_says_which_rows_fail_and_why():
    rows = [
        exact("one", "somebody", "faults", 1, 1),
        within_factor("two", "somebody", "faults", 10.0, 50.0, reason="nobody looked"),
        Row("three", "calibrated", "somebody", "µs", 5, 5, 0, 9),
    ]
    page = markdown(rows, "cpu, seed 1")
    assert "Passed: 1 of 1 exact, 0 of 1 shape, 1 calibrated" in page
    assert "| two | somebody | faults | 10 | 50 | 5 to 20 | FAIL |" in page
    assert "* two: nobody looked." in page
    assert counts(rows[:1]) == "passed: 1 of 1 exact"
    assert values(rows)[1]["verdict"] == "FAIL"


def test_every_reason_belongs_to_a_row():
    known = {(pattern, name) for pattern in sc21.TABLES for name in _TABLE_NAMES}
    known |= {("sgemm", f"duplicates {batch}") for batch in sc21.DUPLICATES}
    known |= {("all", "order"), ("all", "plateau")}
    assert set(sc21.REASONS) <= known


_TABLE_NAMES = ("faults an SM and batch", "VA blocks a batch", "faults a VA block")


def test_the_command(tmp_path, monkeypatch, exact_rows):
    import gpuhmm.coalesce.validate as package

    monkeypatch.setattr(package, "validate", lambda **_: exact_rows)
    out = tmp_path / "rows.json"
    done = CliRunner().invoke(app, ["validate", "--exact", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["rows"]) == len(exact_rows)
    assert len(json.loads(out.read_text())["rows"]) == len(exact_rows)
    for suffix in ("md", "parquet", "npy"):
        done = CliRunner().invoke(app, ["validate", "--exact", "--out", str(tmp_path / f"rows.{suffix}")])
        assert done.exit_code == 0, done.output
        assert (tmp_path / f"rows.{suffix}").stat().st_size > 500
    assert "12 of 12 exact" in done.stdout


def test_the_command_fails_with_an_exact_row(monkeypatch):
    import gpuhmm.coalesce.validate as package

    monkeypatch.setattr(package, "validate", lambda **_: [rows_of.exact("a", "b", "c", 1, 2)])
    assert CliRunner().invoke(app, ["validate", "--exact"]).exit_code == 1


@pytest.mark.parametrize("arguments", [["--out", "rows.txt"], ["--out", "no/such/rows.md"], ["--seed", "-1"]])
def test_wrong_arguments(arguments):
    assert CliRunner().invoke(app, ["validate", "--exact", *arguments]).exit_code == 2
