"""Driver loops recorded in a running kernel, replayed against the model of handle_mm_fault."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from recorded import DATA, LARGE_LOOPS, large_sets
from typer.testing import CliRunner

from gpuhmm.check.recorded import loops
from gpuhmm.check.recorded.call import RecordedCall
from gpuhmm.check.recorded.compare import Renaming, compare
from gpuhmm.check.recorded.facts import FACTS
from gpuhmm.check.recorded.replay import FIRST_MODEL_PFN, replay
from gpuhmm.check.recorded.report import check_call, check_family, loop_files
from gpuhmm.cli import app
from gpuhmm.memory.fault import cow, file

FAULTS = DATA / "faults-6.1.npz"


def calls():
    opened = loops.load(FAULTS)
    return [RecordedCall(opened, index) for index in range(len(opened))]


@cache
def verdicts_of(backend):
    return [check_call(call, backend) for call in calls()]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_recorded_calls_with_faults_are_reproduced(backend):
    verdicts = verdicts_of(backend)
    assert [verdict for verdict in verdicts if verdict.found] == []
    assert len({verdict.scenario for verdict in verdicts}) > 120
    assert sum(verdict.faults for verdict in verdicts) > 60_000
    assert sum(not verdict.facts for verdict in verdicts) > 110


def test_recorded_calls_of_newer_kernels_are_reproduced():
    opened = loops.load(DATA / "faults-new.npz")
    calls = [RecordedCall(opened, index) for index in range(len(opened))]
    verdicts = [check_call(call, "cpu") for call in calls]
    assert [verdict for verdict in verdicts if verdict.found] == []
    # the small kernel of devpriv.npz, the stock one, and the full configs of Ubuntu and of Debian's backport
    assert {call.kernel.title for call in calls} == {
        "v6.12 without MEMORY_FAILURE",
        "v6.12 without DEVICE_PRIVATE",
        "v6.17",
        "v7.3",
    }
    pairs = zip(calls, verdicts, strict=True)
    soft = {call.kernel.title for call, one in pairs if "no_soft_dirty" in one.facts}
    assert soft == {"v6.12 without MEMORY_FAILURE"}


def test_a_number_of_swap_files_that_no_config_has_is_refused():
    with pytest.raises(ValueError, match=r"max_swapfiles must be that of some config of v6\.12"):
        loops._built_profile("v6.12", 25)


@pytest.mark.parametrize(("kernel", "different"), [("6.12", 0), ("6.17", 0), ("7.3", 7)])
def test_all_recorded_calls_of_newer_kernels_are_reproduced(kernel, different):
    counts = [check_family(file, "cpu") for file in loop_files([large_sets() / f"kernel-{kernel}"])]
    assert sum(count.cases for count in counts) == 717
    assert sum(count.different for count in counts) <= different


def test_every_rule_for_facts_is_needed_by_some_call():
    taken = Counter(name for verdict in verdicts_of("cpu") for name in verdict.facts)
    unused = {fact.__name__ for fact in FACTS} - set(taken)
    # what the tables show is no fact; owners matter to calls without faults, see test_faultless_loops.py
    # and this kernel has soft-dirty bits: see test_recorded_calls_of_newer_kernels_are_reproduced
    assert unused == {"visible_page_cache", "device_owner", "no_soft_dirty"}
    needy = [call for call, given in zip(calls(), verdicts_of("cpu"), strict=True) if given.facts]
    wrong = [call.name for call in needy if compare(call, replay(call, "cpu", with_facts=False))]
    assert len(wrong) >= 30


@pytest.mark.parametrize("path", ["kernel-6.1"])
def test_all_recorded_calls_are_reproduced(path):
    counts = [check_family(file, "cpu") for file in loop_files([large_sets() / LARGE_LOOPS])]
    assert sum(count.cases for count in counts) == 20_812
    assert {count.family: count.differences for count in counts if count.different} == {}


def spoiled(call, name, change):
    """Return the call with one array of its recording changed by ``change``, a function of its part."""
    arrays = dict(call.file.arrays)
    array = arrays[name].copy()
    group = next((g for g in ("pt_after", "events", "calls", "pfn") if name.startswith(f"{g}_")), None)
    offsets = arrays[f"{group}_off"] if group else np.arange(len(array) + 1)
    part = slice(int(offsets[call.index]), int(offsets[call.index + 1]))
    array[part] = change(array[part])
    arrays[name] = array
    return RecordedCall(replace(call.file, arrays=arrays), call.index)


def last_but_one(values):
    changed = values.copy()
    changed[-1] ^= changed.dtype.type(2)
    return changed


@pytest.mark.parametrize(
    ("array", "point"),
    [
        ("rc", "rc"),
        ("rc_first", "rc_first"),
        ("tries", "tries"),
        ("calls_ret", "calls"),
        ("calls_a", "calls"),
        ("calls_b", "calls"),
        ("events_end", "events"),
        ("events_event", "events"),
        ("events_attempt", "events"),
        ("pfn_first", "pfn_first"),
        ("pfn_out", "pfn_out"),
        ("pt_after_val", "pt_after"),
    ],
)
def test_a_recording_that_is_spoiled_in_one_point_differs_in_it(array, point):
    call = next(call for call in calls() if call.name.endswith("(fork_child/mid/altwrite)") or call.events)
    assert not compare(call, replay(call, "cpu"))
    wrong = spoiled(call, array, last_but_one)
    assert point in [name for name, _ in compare(wrong, replay(call, "cpu"))]


def test_a_model_that_is_wrong_is_found(monkeypatch):
    forked = next(call for call in calls() if "fork_child_rd/" in call.name)
    assert not check_call(forked, "cpu").found
    monkeypatch.setattr(cow, "_may_reuse", lambda vmf, pfn: True)
    assert check_call(forked, "cpu").found
    mapped = next(call for call in calls() if "tm_sh_un/" in call.name and not call.faults[0].b & 1)
    assert not check_call(mapped, "cpu").found
    monkeypatch.setattr(file, "FAULT_AROUND_PAGES", 8)
    assert check_call(mapped, "cpu").found
    monkeypatch.setattr(file, "do_fault_around", None)
    assert check_call(mapped, "cpu").found[0][0] == "exception"


def test_renaming_is_one_to_one():
    renaming, model = Renaming(), FIRST_MODEL_PFN
    assert renaming.same(model, 7)
    assert renaming.same(model, 7)
    assert not renaming.same(model, 8)  # one page of the model is not two of the kernel
    assert not renaming.same(model + 1, 7)  # nor two one
    assert renaming.same(9, 9)
    assert not renaming.same(10, 11)  # what the recording showed keeps its name
    assert not renaming.same(model + 2, 9)


def test_the_command_prints_counts_and_fails_on_a_difference(tmp_path):
    good = CliRunner().invoke(app, ["verify", "--loops", str(FAULTS), "--backend", "cpu", "--jobs", "1"])
    assert good.exit_code == 0, good.output
    assert "faults-6.1" in good.output
    assert "all reproduced" in good.output
    assert "exclusive_page" in good.output
    arrays = dict(loops.load(FAULTS).arrays)
    arrays["rc"] = arrays["rc"].copy()
    arrays["rc"][3] = -5
    np.savez(tmp_path / "wrong.npz", **arrays)
    arguments = ["verify", "--loops", str(tmp_path), "--backend", "cpu", "--jobs", "1", "--json"]
    bad = CliRunner().invoke(app, arguments)
    assert bad.exit_code == 1
    (family,) = json.loads(bad.stdout)["families"]
    assert family["different"] == 1
    assert family["differences"][0]["point"] == "rc"
    assert "kernel -EIO" in family["differences"][0]["words"]
