"""Pictures: every page is counted once, in its column and its state, whatever the scale."""

from itertools import pairwise

import numpy as np
import pytest
from guest import CR3, guest, write_image
from typer.testing import CliRunner

import gpuhmm
from gpuhmm.capture import capture_of_space, mapping_of, walk_capture
from gpuhmm.cli import app
from gpuhmm.mm.entry import encode_swap
from gpuhmm.mm.vma import VM_HUGETLB, VM_READ, VM_WRITE
from gpuhmm.results.map import draw
from gpuhmm.results.strips import STATES, strips_of

BASE = 1 << 40
MIB2 = 1 << 21
RW = VM_READ | VM_WRITE


def shown(mm, **options):
    capture = capture_of_space(mm, [mapping_of(vma) for vma in mm.vmas], source="a test", notes=[], origin={})
    return strips_of(capture, walk_capture(capture, backend="cpu"), **options)


@pytest.fixture
def space():
    """Return a space with every state in it."""
    mm = gpuhmm.AddressSpace()
    mm.mmap(BASE, BASE + 3 * MIB2)
    mm.map_pfns(BASE, np.arange(1, 101, dtype=np.uint64))
    mm.map_pfns(BASE + 100 * 4096, np.arange(200, 250, dtype=np.uint64), flags=0x25)
    mm.set_entry(BASE + 200 * 4096, 1, encode_swap(2, 5))
    mm.map_pfns(BASE + MIB2, np.array([512], dtype=np.uint64), level=2)
    mm.mmap(BASE + 3 * MIB2, BASE + 4 * MIB2, 0)
    mm.mmap(BASE << 1, (BASE << 1) + (1 << 30), RW | VM_HUGETLB, 30)
    mm.map_pfns(BASE << 1, np.array([1 << 18], dtype=np.uint64), level=3)
    return mm


def test_every_page_is_counted_once(space):
    first, second = shown(space)
    assert (first.start, first.end) == (BASE, BASE + 4 * MIB2)
    assert dict(zip(STATES, first.pages.sum(axis=1).tolist(), strict=True)) == {
        "1 GiB": 0,
        "2 MiB": 512,
        "4 KiB, writable": 100,
        "4 KiB, read-only": 50,
        "not present": 1,
        "error": 512,
        "hole": 512 * 2 - 151,
    }
    assert second.pages.sum(axis=1).tolist() == [1 << 18, 0, 0, 0, 0, 0, 0]
    assert first.pages.sum(axis=0).tolist() == [4] * 512


def test_a_mebibyte_has_a_column_for_each_page(space):
    mm = gpuhmm.AddressSpace()
    mm.mmap(BASE, BASE + (1 << 20))
    mm.map_pfns(BASE + 4096, np.array([7], dtype=np.uint64))
    (strip,) = shown(mm)
    assert strip.pages.shape == (7, 256)
    assert np.flatnonzero(strip.pages[2]).tolist() == [1]


def test_the_largest_gaps_part_strips():
    mm = gpuhmm.AddressSpace()
    at = BASE
    for i in range(40):
        mm.mmap(at, at + 4096)
        at += 4096 << (i % 10)
    strips = shown(mm, max_strips=5)
    assert len(strips) == 5
    assert sum(len(strip.mappings) for strip in strips) == 40
    assert sum(int(strip.pages.sum()) for strip in strips) == 40
    assert len(shown(mm, max_strips=1)) == 1
    gaps = [b.start - a.end for a, b in pairwise(strips)]
    assert min(gaps) == (4096 << 8) - 4096


def test_128_tib_and_nothing_else():
    mm = gpuhmm.AddressSpace()
    mm.mmap(4096, 1 << 47)
    mm.map_pfns(1 << 46, np.array([5], dtype=np.uint64))
    (strip,) = shown(mm)
    assert strip.pages.sum() == (1 << 35) - 1
    assert strip.pages[2].sum() == 1


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_pictures_are_written_whole(space, suffix, magic, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"map{suffix}"
    draw(path, shown(space), "a title with $ and \N{SNOWMAN}")
    assert path.read_bytes().startswith(magic)
    assert list(tmp_path.iterdir()) == [path]


def test_the_command(tmp_path):
    pytest.importorskip("matplotlib")
    image = write_image(guest(), tmp_path / "memory.raw")
    options = ["map", "--dump", str(image), "--cr3", hex(CR3), "--backend", "cpu", "--strips", "6"]
    ran = CliRunner().invoke(app, [*options, "-o", str(tmp_path / "map.png")])
    assert ran.exit_code == 0, ran.output
    assert "6 strips" in ran.output
    failed = CliRunner().invoke(app, [*options, "-o", str(tmp_path / "map.jpeg")])
    assert isinstance(failed.exception, ValueError)
