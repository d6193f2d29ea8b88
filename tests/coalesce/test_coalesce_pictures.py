"""Pictures of runs: what is drawn is counted by other ways, and files appear whole or not at all."""

from __future__ import annotations

import builtins
import os
from collections import Counter

import numpy as np
import pytest
from coalesce_experiments import BASE, PAGE, experiment, no_accesses

from gpuhmm.coalesce.experiment import Experiment
from gpuhmm.coalesce.pictures import draw_runs, faults_of_blocks, parts_of_batches, squeezed
from gpuhmm.coalesce.timeline import Timeline
from gpuhmm.coalesce.trace import FaultTrace


@pytest.fixture(scope="module")
def runs():
    """Return two runs that differ."""
    return [experiment(settings=(("batch", batch),)).run(timeline=Timeline()) for batch in (64, 256)]


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_pictures(tmp_path, runs, suffix, magic):
    path = tmp_path / f"runs{suffix}"
    draw_runs(path, runs, "a $title of words ¿?")
    assert path.read_bytes().startswith(magic)
    assert path.stat().st_size > 10_000
    assert os.listdir(tmp_path) == [path.name]


def test_a_row_a_run(tmp_path, runs):
    struct = pytest.importorskip("struct")
    heights = []
    for count in (1, 2):
        path = tmp_path / f"{count}.png"
        draw_runs(path, runs[:count], "")
        heights.append(struct.unpack(">I", path.read_bytes()[20:24])[0])
    assert heights[1] > 1.5 * heights[0]


def test_a_run_without_faults(tmp_path):
    run = Experiment("none", backend="cpu", make_device=no_accesses).run(timeline=Timeline())
    draw_runs(tmp_path / "none.png", [run], "")
    assert (tmp_path / "none.png").stat().st_size > 1000


def test_a_run_that_kept_nothing(tmp_path):
    draw_runs(tmp_path / "none.png", [experiment().run()], "")
    assert (tmp_path / "none.png").stat().st_size > 1000


def test_faults_of_blocks_are_those_of_the_batches(runs):
    for run in runs:
        faults, batch_of = run.timeline.faults(), run.timeline.batch_of_faults()
        every, different = faults_of_blocks(faults, batch_of)
        keys = [(int(batch), int(va) >> 21) for batch, va in zip(batch_of, faults.va, strict=True)]
        pages = {(int(batch), int(va) >> 12) for batch, va in zip(batch_of, faults.va, strict=True)}
        assert sorted(every) == sorted(Counter(keys).values())
        assert sorted(different) == sorted(Counter((batch, page >> 9) for batch, page in pages).values())
        assert len(every) == run.totals["va_blocks"]
        assert different.sum() == run.totals["unique"]
        assert different.max() == run.batches["most_in_block"].max()


def test_parts_are_all_that_was_read(runs):
    for run in runs:
        parts = parts_of_batches(run.batches)
        assert np.array_equal(parts.sum(axis=0), run.batches["raw"])
        assert parts[3].sum() == run.totals["cross_utlb"] > 0


def test_gaps_are_left_out():
    va = np.array([BASE, BASE + 3 * PAGE, BASE + (1 << 21), BASE + (1 << 40) + 7 * PAGE], dtype=np.uint64)
    rows, blocks, gaps = squeezed(FaultTrace.of(va=va, space=np.array([0, 0, 0, 1], dtype=np.uint16)))
    assert rows.tolist() == [0, 3, 512, 1024 + 7]
    assert [int(block) for block in blocks] == [BASE, BASE + (1 << 21), BASE + (1 << 40)]
    assert gaps == [2]


def test_spaces_lie_apart():
    va = np.array([BASE, BASE], dtype=np.uint64)
    rows, blocks, gaps = squeezed(FaultTrace.of(va=va, space=np.array([0, 1], dtype=np.uint16)))
    assert rows.tolist() == [0, 512]
    assert [int(block) for block in blocks] == [BASE, BASE]
    assert gaps == [1]


def test_bad_input(tmp_path, runs):
    with pytest.raises(ValueError, match="at least one run"):
        draw_runs(tmp_path / "a.png", [], "")
    for name in ("a.gif", "a", "a.png.txt"):
        with pytest.raises(ValueError, match="must end in one of"):
            draw_runs(tmp_path / name, runs, "")
    with pytest.raises(OSError, match="cannot be written"):
        draw_runs(tmp_path / "no" / "a.png", runs, "")
    assert os.listdir(tmp_path) == []


def test_all_or_nothing(tmp_path, runs, monkeypatch):
    from matplotlib.figure import Figure

    def broken(self, path, **more):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    (tmp_path / "a.png").write_text("before")
    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(KeyboardInterrupt):
        draw_runs(tmp_path / "a.png", runs, "")
    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "before"


def test_without_matplotlib(tmp_path, runs, monkeypatch):
    imported = builtins.__import__

    def missing(name, *more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return imported(name, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match="pip install 'gpuhmm\\[out\\]'"):
        draw_runs(tmp_path / "a.png", runs, "")
    assert os.listdir(tmp_path) == []
