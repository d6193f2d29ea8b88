"""gpuhmm batches: a trace in a file, its batches in a table."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from gpuhmm.cli import app
from gpuhmm.coalesce.preprocess import COUNTS, coalesce_trace
from gpuhmm.coalesce.readers import write_trace
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.results import read_results


@pytest.fixture
def trace(tmp_path):
    rng = np.random.default_rng(3)
    faults = FaultTrace.of(
        time=np.arange(2000),
        va=rng.integers(0, 3000, 2000).astype(np.uint64) << np.uint64(12),
        access=rng.integers(0, 5, 2000),
        utlb=rng.integers(0, 8, 2000),
    )
    write_trace(tmp_path / "faults.parquet", faults)
    return tmp_path / "faults.parquet", faults


def invoke(*arguments):
    return CliRunner().invoke(app, ["batches", *map(str, arguments)])


def test_counts_are_those_of_the_rules(trace):
    path, faults = trace
    done = invoke(path, "--rules", "uvm,nouveau,window", "--backend", "cpu", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["faults"] == 2000
    for rules, found in report["rules"].items():
        table = coalesce_trace(faults, rules=rules, backend="reference")
        assert {name: found[name] for name in COUNTS} == table.totals()
        assert found["batches"] == len(table)


@pytest.mark.parametrize("suffix", ["parquet", "npy"])
def test_a_row_a_batch(trace, tmp_path, suffix):
    path, faults = trace
    out = tmp_path / f"rows.{suffix}"
    done = invoke(path, "--batch", "64", "--window", "64K", "--out", out, "--backend", "cpu")
    assert done.exit_code == 0, done.output
    assert "M faults a second" in done.stdout
    rows = read_results(out)
    table = coalesce_trace(faults, 64, 1 << 16, backend="reference")
    assert len(rows) == len(table)
    for name in COUNTS:
        assert np.array_equal(rows[name], table.count(name))


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--rules", "windows"], "rules must be one of", 1),
        (["--batch", "many"], "--batch must be a number", 2),
        (["--batch", "0"], "batch must be 1 to", 1),
        (["--window", "3K"], "window must be a power of two", 1),
        (["--out", "rows.txt"], "must end in one of", 1),
    ],
)
def test_wrong_arguments(trace, arguments, words, code):
    done = invoke(trace[0], *arguments)
    assert done.exit_code == code
    text = done.output if code == 2 else str(done.exception)
    assert words in " ".join(text.replace("│", " ").split())


def test_a_file_that_is_no_trace(tmp_path):
    (tmp_path / "faults.parquet").write_bytes(b"PAR1 not")
    assert invoke(tmp_path / "faults.parquet").exit_code == 1
    assert invoke(tmp_path / "missing.parquet").exit_code == 1
