"""``gpuhmm coalesce``: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from gpuhmm.cli import app
from gpuhmm.coalesce.batches import BATCH_DTYPE
from gpuhmm.coalesce.experiment import Experiment, default_drivers, settings_of_drivers
from gpuhmm.coalesce.readers import read_trace, write_trace
from gpuhmm.coalesce.sources import device_of, source_identity
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.results.files import read_results

SOURCE = "random:pages=300"
FREE = (SOURCE, "--driver", "free")


def run(*arguments):
    return CliRunner().invoke(app, ["coalesce", *map(str, arguments)], env={"COLUMNS": "200"})


def report(*arguments):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trace(tmp_path):
    """Return a file with faults of two µTLBs."""
    va = np.uint64(1 << 40) + (np.arange(200, dtype=np.uint64) % np.uint64(120) << np.uint64(12))
    time = np.arange(200, dtype=np.uint64) * np.uint64(50)
    path = tmp_path / "faults.parquet"
    write_trace(path, FaultTrace.of(time=time, va=va, access=np.full(200, 1), utlb=np.arange(200) % 2))
    return path


def test_drivers_side_by_side():
    done = run(SOURCE, "--driver", ",".join([*default_drivers(), "free"][-2:]))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == [*default_drivers(), "free"][-2:]
    rows = {line.strip().rsplit("  ", 1)[0].strip().split("  ")[0]: line.split() for line in lines}
    assert rows["mapped"][-1] == "300"
    for title in ("faults", "work", "pages", "device", "time, ms"):
        assert title in [line.strip() for line in lines]
    assert "not a prediction" in done.stdout
    assert "by the cost model sc21-titan-v" in done.stdout
    assert "walked by the cpu back end (" in done.stdout


def test_the_drivers_that_run_if_none_is_named():
    drivers = default_drivers()
    assert [one["driver"] for one in report(SOURCE, "--max-batches", 2)["runs"]] == drivers
    assert "free" not in drivers or drivers == ["free"]


def test_json_is_what_the_run_counted():
    made = report(*FREE, "--set", "batch=64", "--layout", "private-file", "--seed", 3)
    assert made["source"] == SOURCE
    assert made["backend"] == "cpu"
    assert made["walked_on"]
    assert made["device"]["name"] == "titan-v"
    (one,) = made["runs"]
    assert one["settings"]["batch"] == 64
    alone = Experiment(SOURCE, settings=(("batch", 64),), layout="private-file", seed=3, backend="cpu").run()
    assert one["totals"] == alone.totals
    assert one["model_ns"] == alone.model_ns
    assert one["finished"] is True
    assert one["totals"]["pages_mapped"] == 300


def test_options_reach_the_run():
    plain = report(*FREE)["runs"][0]
    window = report(*FREE, "--set", "free.window=64K", "--set", "whole_window=on")["runs"][0]
    assert window["settings"]["window"] == 1 << 16
    assert window["settings"]["whole_window"] is True
    assert window["totals"]["pages_unasked"] >= 0
    assert window["totals"]["hmm_calls"] > plain["totals"]["hmm_calls"]
    cheap = report(*FREE, "--costs", "mi300a", "--cost", "page=0", "--cost", "batch=1")
    assert cheap["costs"]["name"] == "mi300a (changed)"
    assert cheap["costs"]["page"] == 0
    assert cheap["runs"][0]["model_ns"] < plain["model_ns"]
    device = report(*FREE, "--device-set", "utlb_outstanding=4")
    assert device["device"]["utlb_outstanding"] == 4
    assert device["runs"][0]["totals"] != plain["totals"]
    short = report(*FREE, "--set", "batch=16", "--max-batches", 2)["runs"][0]
    assert short["finished"] is False
    assert short["totals"]["raw"] <= 32
    disturbed = report(*FREE, "--cpu", "dontneed:20:4")["runs"][0]
    assert disturbed["totals"]["invalidations"] > 0
    old = report(*FREE, "--kernel", "v5.18", "--backend", "reference")
    assert (old["kernel"], old["backend"]) == ("v5.18", "reference")


def test_an_end_by_max_batches_is_said():
    done = run(*FREE, "--set", "batch=16", "--max-batches", 2)
    assert "free: ended by --max-batches" in done.stdout


def test_a_trace_file_has_the_buffer_of_the_device(trace):
    short = report(trace, "--driver", "free", "--device-set", "buffer_entries=16")["runs"][0]
    assert short["device"]["overflows"] > 0
    assert "a recorded trace" in run(trace, "--driver", "free").stdout


def test_a_trace_file(trace):
    (one,) = report(trace, "--driver", "free")["runs"]
    assert one["totals"]["pages_mapped"] == 120
    assert one["finished"] is True


def test_files(trace, tmp_path):
    files = {name: tmp_path / f"out{name}" for name in (".parquet", ".npy", ".json")}
    (one,) = report(trace, "--driver", "free", "--set", "batch=32")["runs"]
    for suffix, path in files.items():
        done = run(trace, "--driver", "free", "--set", "batch=32", "--out", path)
        assert done.exit_code == 0, done.output
        assert f"written: {path}" in done.stdout
        if suffix == ".json":
            (written,) = json.loads(path.read_text())["runs"]
            assert {**written, "seconds": 0} == {**one, "seconds": 0}
            continue
        table = read_results(path)
        assert table.dtype.names == ("driver", "batch", *BATCH_DTYPE.names)
        assert len(table) == one["totals"]["batches"]
        assert set(table["driver"]) == {"free"}
        assert table["batch"].tolist() == list(range(len(table)))
        for name in ("raw", "unique", "pages_mapped", "service_ns"):
            assert table[name].sum() == one["totals"][name]
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(files[".parquet"])
    assert schema.names[0] == "driver"
    summary = json.loads(schema.metadata[b"gpuhmm"])
    assert summary["runs"][0]["totals"] == one["totals"]


def test_traces_and_pictures(tmp_path):
    perfetto, picture = tmp_path / "a.pftrace", tmp_path / "a.svg"
    done = run(*FREE, "--perfetto", perfetto, "--picture", picture)
    assert done.exit_code == 0, done.output
    assert f"written: {perfetto}" in done.stdout
    assert f"drawn: {picture}" in done.stdout
    assert perfetto.stat().st_size > 1000
    assert picture.read_text().startswith("<?xml")


def test_a_sweep(tmp_path):
    axes = "batch=32..64,request=access|vma"
    arguments = (SOURCE, "--sweep", axes)
    done = run(*arguments, "--picture", tmp_path / "a.png", "--out", tmp_path / "a.parquet")
    assert done.exit_code == 0, done.output
    assert "4 points were run, 0 were there; all are kept in random-sweep" in done.stdout
    assert len(os.listdir("random-sweep")) == 4
    table = read_results(tmp_path / "a.parquet")
    assert table["batch"].tolist() == [32, 32, 64, 64]
    assert table["request"].tolist() == ["access", "vma", "access", "vma"]
    assert (tmp_path / "a.png").stat().st_size > 1000
    again = report(*arguments)
    assert (again["ran"], again["found"], len(again["points"])) == (0, 4, 4)
    wider = report(SOURCE, "--driver", "free", "--sweep", "batch=16..64,request=access|vma")
    assert (wider["ran"], wider["found"]) == (2, 4)
    other = report(*arguments, "--sweep-folder", tmp_path / "elsewhere")
    assert (other["ran"], other["found"], other["folder"]) == (4, 0, str(tmp_path / "elsewhere"))


def test_a_sweep_of_the_device():
    made = report(SOURCE, "--sweep", "device.utlb_outstanding=1|56")
    assert [row["device.utlb_outstanding"] for row in made["points"]] == ["1", "56"]
    assert made["points"][0]["batches"] > made["points"][1]["batches"]


def test_an_interrupted_sweep_says_how_to_go_on(monkeypatch):
    whole = Experiment.run

    def interrupted(self, **more):
        if dict(self.settings)["batch"] == "128":
            raise KeyboardInterrupt
        return whole(self, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Experiment, "run", interrupted)
        done = run(SOURCE, "--sweep", "batch=32..256")
    assert done.exit_code != 0
    assert "at least 2 of 4 points are in random-sweep; the same command does the rest" in done.stderr
    made = report(SOURCE, "--sweep", "batch=32..256")
    assert (made["ran"], made["found"]) == (2, 2)


def test_a_changed_trace_is_another_source(trace):
    first = report(trace, "--sweep", "batch=32..64")
    assert first["folder"] == "faults-sweep"
    assert report(trace, "--sweep", "batch=32..64")["ran"] == 0
    va = np.full(3, 1 << 40, dtype=np.uint64)
    write_trace(trace, FaultTrace.of(va=va, access=np.full(3, 1)))
    changed = report(trace, "--sweep", "batch=32..64")
    assert changed["ran"] == 2
    assert changed["points"][0]["pages_mapped"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ("--driver", "windows"),
        ("--driver", "free,free"),
        ("--driver", ""),
        ("--set", "batch"),
        ("--set", "=3"),
        ("--device-set", "sms="),
        ("--cost", "page=cheap"),
        ("--seed", -1),
        ("--max-batches", 0),
        ("--perfetto", "a.txt"),
        ("--out", "no/such/folder.parquet"),
        ("--sweep-folder", "somewhere"),
        ("--jobs", 2),
        ("--sweep", "batch=1..2", "--perfetto", "a.pftrace"),
        ("--sweep", "batch=1..2", "--save-trace", "a.parquet"),
        ("--save-trace", "a.parquet"),
        ("--driver", "free", "--save-trace", "a.npy"),
        ("--driver", "free", "--save-trace", "a.parquet", "--out", "./a.parquet"),
        ("--picture", "/"),
    ],
)
def test_wrong_calls(wrong, tmp_path):
    done = run(SOURCE, *wrong)
    assert done.exit_code == 2, done.output
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("no.parquet",), "no such trace file and no such pattern"),
        ((".",), "must be a trace file or a pattern"),
        (("random:size=3",), "random has the parameters pages="),
        (("random:pages",), "random has the parameters pages="),
        (("random:pages=many",), "whole number"),
        (("random:pages=1,pages=2",), "more than once"),
        (("random:pages=0",), "pages must be within"),
        ((*FREE, "--set", "colour=red"), "no driver has the setting 'colour'"),
        ((*FREE, "--set", "uvm.batch=3"), "a driver that does not run"),
        ((*FREE, "--set", "free.colour=3"), "no driver has the setting 'free.colour'"),
        ((*FREE, "--set", "batch=few"), "batch must be a whole number"),
        (("TRACE", "--driver", "free", "--device-set", "sms=40"), "of a device that repeats a trace"),
        (("TRACE", "--driver", "free", "--sweep", "device.sms=40|80"), "of a device that repeats a trace"),
        ((*FREE, "--device", "abacus"), "a device must be one of"),
        ((*FREE, "--device-set", "wheels=3"), "a device has the fields"),
        ((*FREE, "--device-set", "sms=many"), "sms must be a whole number"),
        ((*FREE, "--layout", "flat"), "layout must be"),
        ((*FREE, "--costs", "cheap"), "costs must be one of"),
        ((*FREE, "--cost", "lunch=3"), "a cost must be one of"),
        ((*FREE, "--cpu", "dontneed"), "cpu must be OPERATION"),
        ((*FREE, "--backend", "abacus"), "backend must be"),
        ((*FREE, "--out", "a.csv"), "must end in one of"),
        ((*FREE, "--picture", "a.gif"), "must end in one of"),
        ((*FREE, "--sweep", "batch=2..1"), "range of batch is empty"),
        ((*FREE, "--sweep", "colour=1..2"), "no setting 'colour'"),
        ((*FREE, "--sweep", "batch=1..2,window=4K..8K,request=access|vma", "--picture", "a.png"), "got 3"),
        ((*FREE, "--sweep", "batch=1..1M,window=4K..1G,timeout_ms=1..1G"), "at most 10,000 points"),
    ],
)
def test_bad_input(wrong, words, trace, tmp_path):
    done = run(*(trace if word == "TRACE" else word for word in wrong))
    assert isinstance(done.exception, ValueError), done.output
    assert words in str(done.exception)
    assert os.listdir(tmp_path) == [trace.name]


def test_an_unknown_kernel_is_a_usage_error(trace):
    done = run(trace, "--driver", "free", "--kernel", "v1")
    assert done.exit_code == 2
    assert "kernel must be" in done.output


def test_a_trace_is_not_replaced_by_what_comes_of_it(trace):
    before = trace.read_bytes()
    done = run(trace, "--driver", "free", "--out", trace)
    assert done.exit_code == 2
    assert "what is read" in done.output
    assert trace.read_bytes() == before


def test_a_folder_that_may_not_be_written_to_is_found_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Experiment, "run", lambda *_, **__: pytest.fail("it ran"))
    assert run(*FREE, "--out", "a.npy").exit_code == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("driver", [*default_drivers(), "free"])
def test_the_faults_of_a_run_are_a_source(tmp_path, driver):
    made = report(SOURCE, "--driver", driver, "--save-trace", "saved.parquet")["runs"][0]
    saved = read_trace("saved.parquet")
    assert len(saved) == made["totals"]["raw"] > 100
    assert saved.notes["experiment"]["driver"] == driver
    again = report("saved.parquet", "--driver", driver)["runs"][0]
    assert again["finished"] is True
    assert again["device"]["accesses"] == len(saved)
    assert again["totals"]["pages_mapped"] >= len(np.unique(saved.va)) > 100


def test_one_line_for_what_a_user_can_mend():
    done = subprocess.run(
        [sys.executable, "-c", "from gpuhmm.cli import main; main()", "coalesce", "no.parquet"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gpuhmm: no.parquet: there is no such trace file")
    assert done.stderr.count("\n") == 1


def test_a_broken_trace(trace):
    trace.write_bytes(trace.read_bytes()[:200])
    done = run(trace, "--driver", "free")
    assert isinstance(done.exception, ValueError)
    assert str(trace) in str(done.exception)


def test_settings_go_to_the_drivers_that_have_them():
    given = [("batch", "3"), ("free.window", "64K")]
    assert settings_of_drivers(["free"], given) == {"free": {"batch": "3", "window": "64K"}}
    assert settings_of_drivers(["free"], []) == {"free": {}}


def test_a_pattern_is_known_by_all_its_parameters():
    assert source_identity("random") == source_identity(
        "random:"
        + ",".join(f"{name}={value}" for name, value in source_identity("random")["parameters"].items())
    )
    assert source_identity("random:pages=64K")["parameters"]["pages"] == 65536


def test_devices_do_not_share_entries():
    config = Experiment(SOURCE).device_config()
    first = device_of(SOURCE, config, 0)
    first.areas.entries[:] = 1
    assert not device_of(SOURCE, config, 0).areas.entries.any()


def test_help_imports_nothing_that_is_slow():
    code = (
        "import sys\n"
        "from gpuhmm.cli import app\n"
        "try:\n    app(['coalesce', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'matplotlib', 'pyarrow', 'perfetto', 'numba'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--sweep" in done.stdout
    assert "gpuhmm coalesce stream" in done.stdout


def test_the_list_names_everything_that_can_be_set():
    from gpuhmm.coalesce.device.config import DEVICES
    from gpuhmm.coalesce.drivers.registry import DRIVERS
    from gpuhmm.coalesce.patterns.registry import PATTERNS

    done = CliRunner().invoke(app, ["coalesce", "--list"])
    assert done.exit_code == 0, done.output
    for name in (*DRIVERS, *PATTERNS, *DEVICES):
        assert f"  {name} " in done.stdout
    for setting in ("prefetch_threshold=51", "duplicate_ms=2.0", "utlb_outstanding=56", "whole_window=off"):
        assert setting in done.stdout.replace("\n", " ")


@pytest.mark.parametrize(("drivers", "shown"), [("nouveau,amdkfd", True), ("nouveau", False)])
def test_a_livelock_of_one_driver_leaves_the_others_their_results(monkeypatch, drivers, shown):
    from gpuhmm.coalesce.experiment import Experiment
    from gpuhmm.errors import LivelockError

    run = Experiment.run

    def never_ends_under_nouveau(self, **more):
        if self.driver == "nouveau":
            raise LivelockError("driver nouveau served 10000 batches")
        return run(self, **more)

    monkeypatch.setattr(Experiment, "run", never_ends_under_nouveau)
    done = CliRunner().invoke(app, ["coalesce", "vector-add", "--driver", drivers])
    assert done.exit_code == 1
    assert ("amdkfd" in done.stdout) == shown
    assert "served 10000 batches" in (done.stderr if shown else str(done.exception))
