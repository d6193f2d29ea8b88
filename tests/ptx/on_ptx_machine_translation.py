"""Translation, runs and changes by compiled kernels; ``test_ptx_machine.py`` runs it on the PTX machine."""

import random

import numpy as np
import pytest
from spaces import BASE, anonymous, words
from table_images import interesting_addresses, random_image

from gpuhmm.dump import load_tables
from gpuhmm.image import ReaderSource
from gpuhmm.translation import mappings, translate, translate_range


@pytest.mark.parametrize("levels", [4, 5])
def test_translation(levels):
    image = random_image(random.Random(5), levels, tables=12)
    data = image.bytes()
    tables = load_tables(ReaderSource(lambda at, size: data[at : at + size]), image.cr3, levels=levels)
    vas = interesting_addresses(random.Random(6), image, 300)
    seen = [translate(tables, vas, backend=backend).words for backend in ("reference", "cuda")]
    assert np.array_equal(*seen)
    ranges = [
        translate_range(tables, 0x7F00_001F_0000, 600, backend=backend).words
        for backend in ("reference", "cuda")
    ]
    assert np.array_equal(*ranges)
    last = translate_range(tables, (1 << 64) - 0x3000, 3, backend="cuda")
    assert len(last.words) == 3


@pytest.mark.parametrize("split_by", ["address", "permissions"])
def test_runs(split_by):
    image = random_image(random.Random(8), tables=4)
    data = image.bytes()
    tables = load_tables(ReaderSource(lambda at, size: data[at : at + size]), image.cr3)
    seen = [mappings(tables, split_by=split_by, backend=backend) for backend in ("cpu", "cuda")]
    assert np.array_equal(*seen)


def test_tables_that_changed_are_sent_again_for_translation():
    mm = anonymous(4)
    mm.map_pfns(BASE, words(5, 6, 7, 8))
    assert translate_range(mm, BASE, 2, backend="cuda").physical.tolist() == [5 << 12, 6 << 12]
    mm.set_entry(BASE, 1, 0)
    assert translate_range(mm, BASE, 2, backend="cuda").physical.tolist() == [0, 6 << 12]
