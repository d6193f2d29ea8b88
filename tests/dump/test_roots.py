"""Top tables that a scan finds: by what every Linux has, however much of the image is missing."""

import numpy as np
import pytest
from table_images import LEAF, PSE, TABLE, TableImage, map_kernel

from gpuhmm.dump import find_roots, load_tables, read_dump
from gpuhmm.image import ReaderSource

BASE = 0x7F00_0000_0000
NX = 1 << 63


def process(levels=4, pages=64, root=1):
    """Return an image with one process of one page."""
    image = TableImage(pages, levels, root)
    map_kernel(image)
    image.set(BASE, 1, 6 << 12 | LEAF)
    return image


def found(tmp_path, image, **options):
    (tmp_path / "memory").write_bytes(image.bytes())
    return find_roots(tmp_path / "memory", **options)


def test_roots_follow_the_rule(tmp_path):
    image = process()
    image.data[20:24] = image.data[1]
    image.data[20, 3] = 0x77777 << 12 | TABLE  # points out of the image: it may be truncated
    image.data[21, 4] = 1 << 12 | TABLE | PSE
    image.data[22, :256] = 0  # the kernel alone
    image.data[23, 5] = 2 << 12 | TABLE & ~1
    image.data[24] = image.data[1]
    image.data[24, 511] = 25 << 12 | TABLE  # no text behind it
    assert found(tmp_path, image).tolist() == [
        (1 << 12, 4, 1, 2, 0),
        (20 << 12, 4, 2, 2, 0),
        (22 << 12, 4, 0, 2, 0),
    ]
    with pytest.raises(ValueError, match="levels must be"):
        find_roots(tmp_path / "memory", levels=3)


def test_a_truncated_image_keeps_its_roots(tmp_path):
    """The table of the direct map, which every process shares, lies in the part that is cut off."""
    image = process()
    image.data[1, 0x111] = 60 << 12 | TABLE
    image.data[60, 0] = LEAF | PSE
    whole = found(tmp_path, image)
    image.data = image.data[:50]
    assert found(tmp_path, image).tolist() == whole.tolist() == [(1 << 12, 4, 1, 3, 0)]


def test_five_levels_are_not_taken_for_four(tmp_path):
    """P4D[510] is the espfix area: the rule for four levels holds for the top table and the one behind."""
    image = process(levels=5)
    assert found(tmp_path, image).tolist() == [(1 << 12, 5, 1, 1, 0)]
    assert found(tmp_path, image, levels=4)["cr3"].tolist() == [1 << 12, 2 << 12]
    assert load_tables(tmp_path / "memory", 1 << 12).levels == 5
    capture = read_dump(tmp_path / "memory", 1 << 12)
    assert [(m.start, m.end) for m in capture.mappings] == [(BASE, BASE + 4096)]


def test_levels_that_nothing_says_are_taken_as_four_and_said_so(tmp_path):
    image = TableImage(16)
    image.set(BASE, 1, 6 << 12 | LEAF)
    (tmp_path / "memory").write_bytes(image.bytes())
    assert "4 were taken" in read_dump(tmp_path / "memory", 1 << 12).notes[1]
    assert load_tables(tmp_path / "memory", 1 << 12, levels=4).notes == ()
    kernel = process()
    assert load_tables(ReaderSource(lambda at, n: kernel.bytes()[at : at + n]), 1 << 12).notes == ()


def test_the_two_tables_of_a_process_are_a_pair(tmp_path):
    """With page-table isolation: the kernel's table has NX in its user half, user mode's follows it."""
    image = TableImage(64, root=2)
    image.next = 8
    map_kernel(image)
    image.set(BASE, 1, 6 << 12 | LEAF)
    image.data[3] = image.data[2]
    image.data[2, BASE >> 39] |= np.uint64(NX)
    # Neighbours that are no pair: another process, and two without a user half.
    image.data[4], image.data[5] = image.data[3], image.data[3]
    image.data[5, BASE >> 39] = 7 << 12 | TABLE
    image.data[6:8, 256:] = image.data[3, 256:]
    roots = found(tmp_path, image)
    assert [root >> 12 for root in roots["cr3"].tolist()] == [2, 3, 4, 5, 6, 7]
    assert [pair >> 12 for pair in roots["pair"].tolist()] == [3, 2, 0, 0, 0, 0]
