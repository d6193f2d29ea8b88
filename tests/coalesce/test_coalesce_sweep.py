"""Sweeps: their axes, points that survive an interruption, and pictures of them."""

from __future__ import annotations

import json
import os

import coalesce_experiments
import numpy as np
import pytest
from coalesce_experiments import experiment

from gpuhmm.coalesce import sweep as sweep_module
from gpuhmm.coalesce.axes import MAX_POINTS, parse_axes
from gpuhmm.coalesce.experiment import Experiment
from gpuhmm.coalesce.sweep import Sweep, run_point, sweep
from gpuhmm.coalesce.sweep_picture import draw_sweep
from gpuhmm.errors import LivelockError
from gpuhmm.results.files import read_results

AXES = {"batch": (32, 64, 128), "window": (4096, 1 << 21)}


@pytest.fixture
def counted(monkeypatch):
    """Return the settings of every point that is run from now on, in their order."""
    ran = []

    def run(folder, key, one):
        ran.append(dict(one.settings))
        return run_point(folder, key, one)

    monkeypatch.setattr(sweep_module, "run_point", run)
    return ran


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("batch=64..512", {"batch": (64, 128, 256, 512)}),
        ("batch=1..1", {"batch": (1,)}),
        (
            "window=4K..16K, request=access|vma",
            {"window": (4096, 8192, 16384), "request": ("access", "vma")},
        ),
        ("device.utlb_outstanding=56", {"device.utlb_outstanding": ("56",)}),
        ("window=1M..2M", {"window": (1 << 20, 1 << 21)}),
    ],
)
def test_axes(text, axes):
    assert parse_axes(text) == axes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an axis must be"),
        ("batch", "an axis must be"),
        ("batch=", "an axis must be"),
        ("=64..128", "an axis must be"),
        ("batch=64..128,", "an axis must be"),
        ("batch=128..64", "range of batch is empty"),
        ("batch=60..128", "power of two"),
        ("batch=64..100", "power of two"),
        ("batch=0..64", "power of two"),
        ("batch=-64..64", "power of two"),
        ("batch=64..", "from one number to another"),
        ("batch=few..many", "from one number to another"),
        (f"batch=1..{1 << 63}", "power of two"),
        ("batch=64..128,batch=1|2", "more than once"),
        ("request=access|", "must be words"),
        ("request=access|access", "each once"),
        (
            ",".join(f"a{n}=1..2048" for n in range(4)),
            f"at most {MAX_POINTS:,} points \\(got 20,736: 12 x 12 x 12 x 12",
        ),
    ],
)
def test_bad_axes(text, words):
    with pytest.raises(ValueError, match=words):
        parse_axes(text)


def test_a_sweep_is_the_cross_product(tmp_path):
    made = sweep(experiment(), AXES, tmp_path)
    assert [(row["batch"], row["window"]) for row in made.rows] == [
        (batch, window) for batch in AXES["batch"] for window in AXES["window"]
    ]
    assert (made.ran, made.found) == (6, 0)
    for row in made.rows:
        alone = experiment(settings=(("batch", row["batch"]), ("window", row["window"]))).run()
        assert {name: row[name] for name in alone.totals} == alone.totals
        assert row["model_ns"] == alone.model_ns
        assert row["device_faults"] == alone.device.faults
    assert len({row["batches"] for row in made.rows}) > 1


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_interruption_costs_the_running_point(tmp_path, monkeypatch, counted, after):
    make, made = coalesce_experiments.random_accesses, []

    def interrupted(one):
        made.append(one)
        if len(made) == after + 1:
            raise KeyboardInterrupt
        return make(one)

    # The name of the function is a part of the key.
    interrupted.__module__, interrupted.__qualname__ = make.__module__, make.__qualname__
    heard = []
    with pytest.raises(KeyboardInterrupt):
        sweep(
            Experiment("scripted", backend="cpu", make_device=interrupted),
            AXES,
            tmp_path,
            progress=lambda done, total: heard.append((done, total)),
        )
    assert len(counted) == after + 1
    assert heard == [(done, 6) for done in range(after + 1)]
    assert len(list(tmp_path.glob("*.json"))) == after
    del counted[:]
    again = sweep(experiment(), AXES, tmp_path)
    assert (again.ran, again.found) == (6 - after, after)
    assert len(counted) == 6 - after
    whole = sweep(experiment(), AXES, tmp_path / "whole")
    for row, other in zip(again.rows, whole.rows, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    assert [path for path in os.listdir(tmp_path) if path.endswith(".partial")] == []


@pytest.mark.parametrize(
    "content", [b"", b'{"key": "', b"\xff\xfe", b"[]", b"{}", b'{"key": "other", "row": {}}']
)
def test_a_file_that_is_not_whole_is_made_again(tmp_path, counted, content):
    first = sweep(experiment(), AXES, tmp_path)
    victim = tmp_path / f"{experiment(settings=(('batch', 64), ('window', 4096))).key()}.json"
    before = json.loads(victim.read_text())
    victim.write_bytes(content)
    (tmp_path / f".{victim.name}.abc.partial").write_text("{")
    del counted[:]
    second = sweep(experiment(), AXES, tmp_path)
    assert counted == [{"batch": "64", "window": "4096"}]
    assert [row["batches"] for row in second.rows] == [row["batches"] for row in first.rows]
    after = json.loads(victim.read_text())
    assert {**after["row"], "seconds": 0} == {**before["row"], "seconds": 0}


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"layout": "untouched"},
        {"kernel": "v5.18"},
        {"costs": "mi300a"},
        {"cost_times": (("page", 1.0),)},
        {"cpu": "dontneed:5"},
        {"max_batches": 2},
        {"settings": (("replay", "once"),)},
    ],
)
def test_other_experiments_do_not_mix(tmp_path, counted, changed):
    axes = {"batch": (64, 128)}
    sweep(experiment(), axes, tmp_path)
    del counted[:]
    other = sweep(experiment(**changed), axes, tmp_path)
    assert (other.ran, len(counted)) == (2, 2)
    assert (sweep(experiment(), axes, tmp_path).ran, len(counted)) == (0, 2)


def test_a_new_version_runs_again(tmp_path, monkeypatch):
    axes = {"batch": (64,)}
    sweep(experiment(), axes, tmp_path)
    monkeypatch.setattr("gpuhmm.coalesce.experiment.__version__", "9.9")
    assert sweep(experiment(), axes, tmp_path).ran == 1


def test_the_same_setting_in_other_words_is_the_same_point(tmp_path):
    sweep(experiment(), {"window": (4096, 1 << 21)}, tmp_path)
    made = sweep(experiment(settings=(("batch", "256"),)), {"window": ("4K", "2M", "2048K")}, tmp_path)
    assert (made.ran, made.found) == (0, 3)
    assert made.rows[1]["batches"] == made.rows[2]["batches"]


def test_processes_give_the_same(tmp_path):
    alone = sweep(experiment(), AXES, tmp_path / "alone")
    beside = sweep(experiment(), AXES, tmp_path / "beside", jobs=2)
    assert beside.ran == 6
    for row, other in zip(alone.rows, beside.rows, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    names = [sorted(path.name for path in (tmp_path / one).iterdir()) for one in ("alone", "beside")]
    assert names[0] == names[1]


def test_a_driver_that_comes_to_no_end_is_a_row(tmp_path, monkeypatch):
    run = Experiment.run

    def livelock(self, **more):
        if dict(self.settings)["batch"] == "64":
            raise LivelockError("driver free served 10000 interrupts")
        return run(self, **more)

    monkeypatch.setattr(Experiment, "run", livelock)
    made = sweep(experiment(), {"batch": (32, 64)}, tmp_path)
    assert [row["livelock"] for row in made.rows] == ["", "driver free served 10000 interrupts"]
    table = made.table()
    assert np.isnan(table["batches"][1])
    assert table["batches"][0] == made.rows[0]["batches"]
    draw_sweep(tmp_path / "sweep.png", made, "with a hole")


@pytest.mark.parametrize(
    ("axes", "more", "words"),
    [
        ({}, {}, "at least one axis"),
        ({"batch": ()}, {}, "no values"),
        ({"colour": (1, 2)}, {}, "no setting 'colour'"),
        ({"batch": (64, -1)}, {}, "batch must be 0"),
        ({"window": (4096, 5000)}, {}, "power of two"),
        ({"request": ("access", "none")}, {}, "one of access, vma"),
        ({"whole_window": (1, 2)}, {}, "on or off"),
        ({"batch": tuple(range(10_001))}, {}, "at most 10,000"),
        ({"batch": (64,)}, {"jobs": 0}, "jobs must be"),
    ],
)
def test_bad_sweeps_run_nothing(tmp_path, counted, axes, more, words):
    with pytest.raises(ValueError, match=words):
        sweep(experiment(), axes, tmp_path / "folder", **more)
    assert counted == []
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"driver": "windows"}, "a driver must be one of"),
        ({"layout": "none"}, "layout must be"),
        ({"kernel": "v1"}, "kernel must be"),
        ({"costs": "cheap"}, "costs must be one of"),
        ({"cost_times": (("pages", 1.0),)}, "a cost must be one of"),
        ({"cost_times": (("page", -1.0),)}, "page must be a time"),
        ({"cost_times": (("page", float("nan")),)}, "page must be a time"),
        ({"cpu": "dontneed"}, "cpu must be OPERATION:PER_MS"),
        ({"cpu": "dontneed:5:1:1"}, "cpu must be OPERATION:PER_MS"),
        ({"cpu": "sleep:5"}, "operation must be one of"),
        ({"cpu": "dontneed:0"}, "per_ms must be"),
        ({"cpu": "dontneed:nan"}, "per_ms must be"),
        ({"cpu": "dontneed:5:0"}, "npages must be"),
        ({"seed": -1}, "seed must not be negative"),
        ({"max_batches": 0}, "max_batches must be at least 1"),
        ({"backend": "abacus"}, "backend must be"),
    ],
)
def test_bad_experiments_run_nothing(tmp_path, counted, changed, words):
    with pytest.raises(ValueError, match=words):
        sweep(Experiment(**{**vars(experiment()), **changed}), {"batch": (64,)}, tmp_path)
    assert counted == []


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        sweep(experiment(), {"batch": (64,)}, tmp_path / "file")


@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".json"])
def test_points_in_files(tmp_path, suffix):
    made = sweep(experiment(), {"batch": (64, 128), "request": ("access", "vma")}, tmp_path / "points")
    path = tmp_path / f"points{suffix}"
    made.write(path)
    if suffix == ".json":
        assert json.loads(path.read_text())["points"] == made.rows
        return
    table = read_results(path)
    for name in ("batch", "request", "batches", "duplicates", "finished", "livelock"):
        assert list(table[name]) == [row[name] for row in made.rows]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
@pytest.mark.parametrize(
    "axes",
    [
        {"batch": (64, 128)},
        AXES,
        {"batch": tuple(range(30, 50)), "request": ("access", "vma"), "replay": ("once",)},
    ],
)
def test_pictures(tmp_path, axes, suffix):
    rows = [
        {"batches": 3 + place, "model_ns": 10**6 * place, "duplicates": 0.5, "hmm_calls": 0}
        for place in range(int(np.prod([len(values) for values in axes.values()])))
    ]
    path = tmp_path / f"picture{suffix}"
    draw_sweep(path, Sweep(experiment(), axes, rows, 0, 0), "of $this")
    assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("axes", "name", "words"),
    [
        ({"batch": (64,)}, "a.png", "one or two axes"),
        ({"a": (1, 2), "b": (1, 2), "c": (1, 2)}, "a.png", "got 3: a, b, c"),
        (AXES, "a.gif", "must end in one of"),
    ],
)
def test_what_cannot_be_drawn(tmp_path, axes, name, words):
    with pytest.raises(ValueError, match=words):
        draw_sweep(tmp_path / name, Sweep(experiment(), axes, [], 0, 0), "")
    assert not list(tmp_path.iterdir())
