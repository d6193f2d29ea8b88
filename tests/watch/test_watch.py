"""What changed between two captures: each kind on its own, random spaces page by page, and a live process."""

import json
import random

import numpy as np
import pytest
from known_process import known_process
from typer.testing import CliRunner

import gpuhmm
from gpuhmm.capture import capture_of_space, mapping_of
from gpuhmm.cli import app
from gpuhmm.mm.entry import encode_swap
from gpuhmm.process import read_process, stopped
from gpuhmm.watch import Change, compare

BASE = 1 << 40
MIB2 = 1 << 21
SWAP = encode_swap(3, 77)


def capture(mm):
    return capture_of_space(
        mm, [mapping_of(vma) for vma in mm.vmas], source="a test", notes=[], origin={"kind": "space"}
    )


def space(entries=(), huge=()):
    """Return a space of 8 MiB with PTEs {page: value or PFN} and huge pages at windows."""
    mm = gpuhmm.AddressSpace()
    mm.mmap(BASE, BASE + 4 * MIB2)
    for window, pfn in huge:
        mm.map_pfns(BASE + window * MIB2, np.array([pfn], dtype=np.uint64), level=2)
    for page, value in entries:
        mm.make_tables(BASE + page * 4096, 1)
        mm.set_entry(BASE + page * 4096, 1, value if value > 1 << 40 else value << 12 | 0x867)
    return mm


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_each_change_is_told(backend):
    before = space([(0, 5), (1, 6), (2, 7), (4, SWAP), (5, SWAP), (6, 9)], huge=[(1, 512)])
    after = space([(0, 5), (1, 66), (3, 8), (4, 9), (5, SWAP), (6, SWAP)], huge=[(2, 1024)])
    for i in range(512):
        after.make_tables(BASE + MIB2, 1)
        after.set_entry(BASE + MIB2 + i * 4096, 1, 512 + i << 12 | 0x867)
    found = compare(capture(before), capture(after), backend=backend)
    page = np.uint64(BASE) + np.uint64(4096) * np.arange(8, dtype=np.uint64)
    assert found.runs.tolist() == [
        (page[1], 1, Change.MOVED),
        (page[2], 1, Change.UNMAPPED),
        (page[3], 1, Change.MAPPED),
        (page[4], 1, Change.SWAPPED_IN),
        (page[6], 1, Change.SWAPPED_OUT),
        (BASE + MIB2, 512, Change.SPLIT),
        (BASE + 2 * MIB2, 512, Change.MAPPED),
    ]
    assert found.counts()["mapped"] == 513
    back = compare(capture(after), capture(before), backend=backend)
    assert back.counts()["collapsed"] == 512
    assert found.new_mappings == found.gone_mappings == 0
    assert not len(compare(capture(after), capture(after), backend=backend).runs)


def told_by(before, after, va):
    """Return the change of a page by the names of :mod:`gpuhmm.watch`, from the entries of both spaces."""
    kinds = []
    for mm in (before, after):
        (word,) = gpuhmm.translate(mm, np.array([va], dtype=np.uint64), backend="reference").words.tolist()
        reason, level, address = word >> 56 & 7, word >> 52 & 7, word & (1 << 52) - 1
        kinds.append(
            {0: ("here", level, address), 1: ("here", level, address), 3: ("swapped",)}.get(reason, ("gone",))
        )
    old, new = kinds
    if old[0] == new[0] == "here":
        if old[1] != new[1]:
            return Change.SPLIT if new[1] < old[1] else Change.COLLAPSED
        return Change.NONE if old == new else Change.MOVED
    return {
        ("gone", "here"): Change.MAPPED,
        ("swapped", "here"): Change.SWAPPED_IN,
        ("here", "gone"): Change.UNMAPPED,
        ("here", "swapped"): Change.SWAPPED_OUT,
    }.get((old[0], new[0]), Change.NONE)


def test_changes_of_random_spaces_are_those_of_each_page():
    rng = random.Random(3)
    protnone = (1 << 40) | (1 << 8)  # not _PAGE_PRESENT, _PAGE_PROTNONE
    for _ in range(4):
        pair = [
            space(
                [(rng.randrange(512), rng.choice([SWAP, protnone, *range(1, 4)])) for _ in range(400)],
                [(w, 512 * rng.randrange(1, 3)) for w in range(1, 4) if rng.randrange(2)],
            )
            for _ in range(2)
        ]
        found = compare(*map(capture, pair)).runs
        told = {int(run["va"]) + 4096 * i: run["change"] for run in found for i in range(int(run["npages"]))}
        for page in [*range(512), *range(512, 2048, 512)]:
            va = BASE + page * 4096
            assert told.get(va, Change.NONE) == told_by(*pair, va), hex(va)


def test_without_real_pfns_nothing_moves():
    from dataclasses import replace

    pair = [replace(capture(space([(0, pfn)])), pfns_real=False) for pfn in (5, 6)]
    found = compare(*pair, backend="cpu")
    assert not len(found.runs)
    assert not found.moves_known


def test_mappings_come_and_go():
    before, after = space([(0, 5)]), space([(0, 5)])
    after.mmap(BASE + 8 * MIB2, BASE + 9 * MIB2)
    found = compare(capture(before), capture(after), backend="cpu")
    assert (found.new_mappings, found.gone_mappings) == (1, 0)


def test_a_live_process_that_stands_still(tmp_path):
    # Stopped: it may still be on its way to where it waits.
    with known_process(tmp_path) as child, stopped(child.pid):
        pair = [read_process(child.pid) for _ in range(2)]
        assert not len(compare(*pair, backend="cpu").runs)
        ran = CliRunner().invoke(
            app,
            ["walk", "--pid", str(child.pid), "--watch", "0", "--times", "2", "--backend", "cpu", "--json"],
        )
        said = CliRunner().invoke(
            app, ["walk", "--pid", str(child.pid), "--watch", "0", "--times", "1", "--backend", "cpu"]
        )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(lines) == 2
    assert lines[0]["mapped"] == 0
    assert lines[0]["present"] > 100
    assert "no change" in said.stdout


def test_our_own_memory_is_seen_to_be_mapped():
    import mmap
    import os

    with mmap.mmap(-1, 64 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area[0] = 1
        before = read_process(os.getpid())
        for page in range(64):
            area[page * 4096] = 1
        found = compare(before, read_process(os.getpid()), backend="cpu")
    runs = found.runs[found.runs["change"] == Change.MAPPED]
    assert runs["npages"].max() >= 63


@pytest.mark.parametrize(
    "options",
    [["--watch", "1", "--out", "x.npy"], ["--times", "3"], ["--watch", "1", "--dump", "x", "--cr3", "1"]],
)
def test_options_that_do_not_go_together(options):
    assert CliRunner().invoke(app, ["walk", *options]).exit_code == 2
