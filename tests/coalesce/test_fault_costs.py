"""The experiment of ``gpuhmm faults``: its two known stories, and counts that can be worked out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from gpuhmm.cli import app
from gpuhmm.coalesce.fault_costs import fault_costs, touched_pages
from gpuhmm.coalesce.layouts import LAYOUTS

PAGES = 4096  # 16 MiB, 8 PMDs


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("range_pages", "faults"), [(1, 8), (16, 8 * 16), (512, PAGES), (PAGES, PAGES)])
def test_one_missing_pte_faults_every_page_to_the_end_of_its_pmd(backend, range_pages, faults):
    costs = fault_costs("untouched", PAGES, "first-of-pmd", "read", range_pages, backend=backend)
    assert (costs.touched, costs.faults, costs.unasked) == (8, faults, faults - 8)
    assert (costs.retries, costs.invalidations) == (0, 0)


def test_the_last_page_of_a_pmd_costs_one_fault_only_where_tables_exist():
    hole = fault_costs("untouched", PAGES, "last-of-pmd", "read", PAGES)
    assert hole.faults == PAGES  # no table: the extent is the whole hole
    mapped = fault_costs("zero", PAGES, "last-of-pmd", "write", PAGES)
    assert (mapped.faults, mapped.unasked) == (8, 0)


@pytest.mark.parametrize("layout", ["private-file", "zero", "forked"])
@pytest.mark.parametrize(("range_pages", "retries"), [(64, PAGES // 64), (512, 8), (PAGES, 8)])
def test_write_requests_on_copy_on_write_memory_retry_once_a_pmd(layout, range_pages, retries):
    write = fault_costs(layout, PAGES, "all", "write", range_pages)
    assert (write.faults, write.retries, write.invalidations) == (PAGES, retries, PAGES)
    read = fault_costs(layout, PAGES, "all", "read", range_pages)
    assert (read.faults, read.retries, read.invalidations) == (0, 0, 0)
    assert write.mapped == read.mapped == PAGES


def test_shared_and_owned_memory_never_retries():
    for layout, faults in (("shared-file", PAGES), ("written", 0), ("untouched", PAGES)):
        costs = fault_costs(layout, PAGES, "all", "write", 512)
        assert (costs.faults, costs.retries) == (faults, 0), layout


def test_huge_pages_that_are_shared_are_split_and_copied():
    costs = fault_costs("forked-huge", PAGES, "all", "write", 512)
    assert costs.invalidations == 8 + PAGES  # each split, then each page
    assert costs.retries == 8
    fresh = fault_costs("untouched-huge", PAGES, "first-of-pmd", "write", 512)
    assert (fresh.faults, fresh.retries, fresh.mapped) == (PAGES, 0, 8)


def test_asking_for_whole_ranges_leaves_nothing_unasked():
    costs = fault_costs("untouched", PAGES, "first-of-pmd", "write", 64, whole_ranges=True)
    assert (costs.faults, costs.unasked, costs.mapped) == (8 * 64, 0, 8 * 64)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_can_be_served(layout):
    costs = fault_costs(layout, 1000, "random:100", "write", 128, seed=3)
    assert costs.mapped == costs.touched == 100
    assert costs.calls == costs.ranges + costs.retries


def test_patterns():
    assert touched_pages("every:100", 250).tolist() == [0, 100, 200]
    assert touched_pages("last-of-pmd", 700).tolist() == [511, 699]
    twice = [touched_pages("random:7", 50, seed=1).tolist() for _ in range(2)]
    assert twice[0] == twice[1]
    assert len(set(twice[0])) == 7
    for wrong in ("some", "every:0", "every:x", "all:3"):
        with pytest.raises(ValueError, match="touched pages must be"):
            touched_pages(wrong, 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"layout": "x"},
        {"request": "x"},
        {"npages": 0},
        {"range_pages": 0},
        {"range_pages": 100},
        {"range_pages": 1 << 19},
    ],
    ids=lambda w: "-".join(map(str, *w.items())),
)
def test_bad_arguments_are_refused(wrong):
    good = {"layout": "zero", "npages": 8, "pattern": "all", "request": "read", "range_pages": 8}
    with pytest.raises(ValueError, match="must be"):
        fault_costs(**{**good, **wrong})


def run(*arguments):
    return CliRunner().invoke(app, ["faults", *arguments])


def test_the_command_prints_both_requests_and_every_size():
    done = run("--pages", "1024", "--range-pages", "16,512", "--layout", "zero")
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines() if line.startswith(("read", "write"))]
    assert [row[0] for row in rows] == ["read", "read", "write", "write"]
    assert rows[3][1:] == ["2", "MiB", "2", "1,024", "0", "1.0", "2", "6", "1,024"]


def test_the_command_as_json():
    done = run("--pages", "512", "--range-pages", "512", "--request", "write", "--layout", "forked", "--json")
    report = json.loads(done.stdout)
    assert report["layout"] == "forked"
    assert [(cost["faults"], cost["retries"]) for cost in report["costs"]] == [(512, 1)]


@pytest.mark.parametrize(
    "wrong", [["--layout", "x"], ["--request", "x"], ["--range-pages", "4,a"], ["--range-pages", "0"]]
)
def test_the_command_refuses_what_it_does_not_know(wrong):
    assert run(*wrong).exit_code == 2


def test_a_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'gpuhmm[out]'")
    path = tmp_path / "costs.png"
    assert run("--pages", "1024", "--picture", str(path)).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_picture_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    done = run("--pages", "64", "--picture", str(tmp_path / "x.png"))
    assert done.exit_code == 1
    assert "need Matplotlib" in str(done.exception)
    monkeypatch.undo()
    done = run("--pages", "64", "--picture", str(tmp_path / "x"))
    assert done.exit_code == 1
    assert "must end in one of .png, .svg, .pdf" in str(done.exception)
    assert not np.any([*tmp_path.iterdir()])
