"""``gpuhmm bench``: it measures what it names and keeps it; how fast is no test's business."""

import json
import os

import numpy as np
import pytest
from typer.testing import CliRunner

from gpuhmm.bench.baselines import BASELINES
from gpuhmm.bench.c_peer import c_walk
from gpuhmm.bench.peers import PEERS
from gpuhmm.bench.workloads import BASE, WORKLOADS
from gpuhmm.check.difference import errno_name
from gpuhmm.cli import app
from gpuhmm.hmm.loop import range_fault
from gpuhmm.hmm.ranges import HmmRange
from gpuhmm.process import read_process
from gpuhmm.snapshot import save_snapshot


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_rows_tell_what_was_measured_and_on_what(tmp_path):
    out = tmp_path / "results" / "here.json"
    result = run("dense-4k", "thp-write", "--size", "2MiB", "--size", "4MiB", "--rounds", 2, "--out", out)
    assert result.exit_code == 0, result.output
    kept = json.loads(out.read_text())
    rows = kept["rows"]
    assert [(row["workload"], row["walker"], row["pages"]) for row in rows if row["walker"] == "cpu"] == [
        ("dense-4k", "cpu", 512),
        ("dense-4k", "cpu", 1024),
        ("thp-write", "cpu", 512),
        ("thp-write", "cpu", 1024),
    ]
    assert {row["walker"] for row in rows} == {"cpu", *PEERS}
    assert all(row["ratio"] > 0 and row["bytes"] == row["pages"] * 16 for row in rows[:3])
    assert kept["devices"]["cpu"]
    assert kept["versions"]["numba"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


def test_small_ranges_holes_and_faults():
    result = run(
        "small-ranges",
        "hole-as-runs",
        "live-process",
        "fault-storm",
        "--size",
        "2MiB",
        "--rounds",
        1,
        "--json",
    )
    assert result.exit_code == 0, result.output
    names = {row["workload"] for row in json.loads(result.stdout)["rows"]}
    assert {
        "one-range-of-64-write",
        "batch-of-64s-per-page",
        "hole-as-runs",
        "live-process-as-words",
    } <= names


def test_a_snapshot_is_walked_as_well(tmp_path):
    save_snapshot(tmp_path / "snap", read_process(os.getpid()))
    result = run("dense-4k", "--size", "2MiB", "--rounds", 1, "--snapshot", tmp_path / "snap", "--json")
    assert result.exit_code == 0, result.output
    names = [row["workload"] for row in json.loads(result.stdout)["rows"]]
    assert names[-2:] == ["snapshot-as-runs", "snapshot-as-words"]


@pytest.mark.parametrize("name", [name for name, workload in WORKLOADS.items() if not workload.faults])
def test_a_workload_asks_for_nothing_that_must_be_faulted(name):
    workload = WORKLOADS[name]
    mm = workload.make(1024)
    notifier = mm.notifier(BASE, BASE + (1024 << 12))
    range_ = HmmRange(
        notifier,
        BASE,
        BASE + (1024 << 12),
        np.zeros(1024, dtype=np.uint64),
        notifier_seq=notifier.read_begin(),
        default_flags=workload.default_flags,
        pfn_flags_mask=workload.pfn_flags_mask,
    )
    from gpuhmm.hmm.backends import hmm_range_fault

    assert errno_name(hmm_range_fault(range_, "cpu")) == "0"
    assert range_.stats.faults == 0


@pytest.mark.parametrize("name", BASELINES)
def test_every_way_of_a_baseline_moves_the_same(name):
    rng = np.random.default_rng(4)
    source, before = rng.integers(0, 1 << 63, (2, 4096), dtype=np.uint64)
    before[::2] |= np.uint64(1 << 63)
    wanted = {
        "copy": source,
        "update": (before & np.uint64(1 << 63)) | source,
        "fill": np.full_like(source, 1 << 63),
    }
    for way in BASELINES[name].loops.values():
        target = before.copy()
        way(source, target)
        assert np.array_equal(target, wanted[name])
    assert list(BASELINES[name].seconds(source, before)) == list(BASELINES[name].loops)


def test_the_walk_in_c_gives_the_same_words_and_has_a_row():
    mm = WORKLOADS["sparse"].make(4096)
    words = np.full(4096, 7, dtype=np.uint64)
    c_walk()(mm, BASE, words)
    assert np.array_equal(words, range_fault(mm, BASE, BASE + (4096 << 12), backend="reference").hmm_pfns)
    result = run("dense-4k", "--size", "2MiB", "--rounds", 1, "--peer", "c", "--json")
    assert result.exit_code == 0, result.output
    rows = {row["walker"]: row for row in json.loads(result.stdout)["rows"]}
    assert {"cpu", "C"} <= set(rows)
    assert set(rows["C"]["baselines"]) == {"numba", "past caches", "memcpy"}
    assert rows["C"]["baseline"].removeprefix("copy, ") in rows["C"]["baselines"]


def test_the_walk_in_c_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RuntimeError, match="needs a C compiler"):
        c_walk()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(RuntimeError, match="does not compile"):
        c_walk()


@pytest.mark.parametrize("peer", PEERS)
def test_peers_give_the_same_words(peer):
    mm = WORKLOADS["sparse"].make(2048)
    words = np.empty(2048, dtype=np.uint64)
    PEERS[peer](mm, BASE, words)
    assert np.array_equal(words, range_fault(mm, BASE, BASE + (2048 << 12), backend="reference").hmm_pfns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "a workload must be one of dense-4k"),
        (["--size", "3KB"], "a size must be a number with"),
        (["--size", "1MiB"], "multiple of 2 MiB"),
        (["--peer", "rust"], "a peer must be c"),
        (["--out", "x.txt"], "must name a .json file"),
    ],
)
def test_wrong_arguments(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_the_workloads_have_names():
    result = run("--list")
    assert result.exit_code == 0
    assert "fragmented-per-page" in result.stdout.split()
