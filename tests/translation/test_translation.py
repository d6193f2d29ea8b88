"""Translation: every back end gives what a walk through memory gives, and runs add up to it."""

import random

import numpy as np
import pytest
from table_images import (
    ADDRESS,
    ALL,
    LEAF,
    PSE,
    TABLE,
    TableImage,
    expanded,
    interesting_addresses,
    loaded,
    random_image,
    walk_memory,
)

import gpuhmm
from gpuhmm.errors import ArrayTypeError
from gpuhmm.translation import (
    MAPPING_NX,
    MAPPING_PROTNONE,
    MAPPING_USER,
    MAPPING_WRITE,
    Reason,
    iter_mappings,
    mappings,
    translate,
    translate_range,
)
from gpuhmm.translation.reference import translate_va

BACKENDS = ["reference", "cpu"]
MIB2 = 1 << 21


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("seed", range(6))
def test_every_back_end_gives_what_memory_says(seed, levels):
    rng = random.Random(seed)
    image = random_image(rng, levels)
    tables = loaded(image)
    vas = interesting_addresses(rng, image, 3000)
    expected = [walk_memory(image, va) for va in vas.tolist()]
    seen = {backend: translate(tables, vas, backend=backend) for backend in BACKENDS}
    assert np.array_equal(*[result.words for result in seen.values()])
    result = seen["cpu"]
    assert len(result) == len(vas)
    assert result.mapped.tolist() == [pa is not None for pa, _ in expected]
    assert result.physical[result.mapped].tolist() == [pa for pa, _ in expected if pa is not None]
    assert result.levels.tolist() == [level for _, level in expected]
    assert not result.physical[~result.mapped].any()
    assert {Reason.MAPPED, Reason.PROTNONE, Reason.NONE} <= set(result.reasons.tolist())
    assert sum(result.counts().values()) == len(vas)


@pytest.mark.parametrize("levels", [4, 5])
def test_ranges_are_the_same_as_their_addresses(levels):
    rng = random.Random(99)
    image = random_image(rng, levels)
    tables = loaded(image)
    top = (1 << 64) - (1 << 31)
    for start, npages in [(0x1_0000_0000, 3000), (0x7F00_0000_7000, 517), (top + 0x5000, 1), (top, 1 << 19)]:
        vas = np.uint64(start) + (np.arange(npages, dtype=np.uint64) << np.uint64(12))
        whole = translate_range(tables, start, npages, backend="cpu")
        assert np.array_equal(whole.words, translate(tables, vas, backend="cpu").words)
        if npages < 5000:
            assert np.array_equal(
                whole.words, translate_range(tables, start, npages, backend="reference").words
            )
    assert len(translate_range(tables, 0, 0).words) == 0


def test_a_large_range_runs_in_parallel_and_gives_the_same():
    mm = gpuhmm.AddressSpace()
    npages = 1 << 18
    mm.mmap(1 << 40, (1 << 40) + (npages << 12))
    pfns = np.random.default_rng(3).integers(1, 1 << 40, npages, dtype=np.uint64)
    mm.map_pfns(1 << 40, pfns)
    assert np.array_equal(translate_range(mm, 1 << 40, npages, backend="cpu").physical >> 12, pfns)
    vas = (1 << 40) + (np.random.default_rng(4).permutation(npages).astype(np.uint64) << np.uint64(12))
    found = translate(mm, vas, backend="cpu")
    assert np.array_equal(found.physical >> 12, pfns[((vas - np.uint64(1 << 40)) >> 12).astype(int)])
    runs = mappings(mm, backend="cpu")
    assert runs["npages"].sum() == npages


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("split_by", ["address", "permissions"])
@pytest.mark.parametrize("seed", range(4))
def test_runs_hold_every_mapped_page_once_and_are_maximal(seed, split_by, levels):
    image = random_image(random.Random(seed), levels)
    tables = loaded(image)
    runs = mappings(tables, split_by=split_by, backend="cpu")
    vas, pas, which = expanded(runs)
    assert (np.diff(vas.astype(object)) > 0).all()
    result = translate(tables, vas, backend="cpu")
    assert result.mapped.all()
    assert np.array_equal(result.physical, pas)
    assert np.array_equal(result.reasons == Reason.PROTNONE, (runs["flags"][which] & MAPPING_PROTNONE) != 0)
    assert len(vas) == pages_in_tables(tables)
    # Maximal: no run goes on where the one before it ends.
    size = runs["npages"][:-1] << np.uint64(12)
    touching = (runs["va"][:-1] + size == runs["va"][1:]) & (runs["pa"][:-1] + size == runs["pa"][1:])
    changed = runs["flags"][:-1] ^ runs["flags"][1:]
    wanted = 15 if split_by == "permissions" else int(MAPPING_PROTNONE)
    assert ((changed[touching] & wanted) != 0).all()


def pages_in_tables(tables):
    """Count mapped pages of 4 KiB by going through all tables from the top."""

    def below(row, level):
        count = 0
        page = tables.leaf[row] if level == 1 else tables.upper[row]
        for slot in np.flatnonzero(page).tolist():
            entry = int(page[slot])
            leaf = level == 1 or (level <= 3 and entry & PSE)
            if leaf and entry & 0x101:
                count += 1 << 9 * (level - 1)
            elif not leaf and entry & 1 and tables.child[row, slot] >= 0:
                count += below(int(tables.child[row, slot]), level - 1)
        return count

    return below(0, tables.levels)


def test_ranges_of_runs_are_cut_at_both_ends():
    image = TableImage()
    image.set(0x4000_0000, 3, (1 << 30) | LEAF | PSE)
    tables = loaded(image)
    runs = mappings(tables, 0x4000_3000, 0x4000_9000)
    assert runs.tolist() == [
        (0x4000_3000, (1 << 30) + 0x3000, 6, int(MAPPING_WRITE | MAPPING_USER | MAPPING_NX))
    ]
    assert len(mappings(tables, 0x8000_0000, 0x9000_0000)) == 0
    assert len(mappings(tables, 0, 0x4000_0000)) == 0


def test_runs_join_across_tables_and_sizes_of_pages():
    image = TableImage()
    base = 0x7F00_0000_0000
    for i in range(512):
        image.set(base + (i << 12), 1, (0x40000 + i) << 12 | LEAF)
    image.set(base + MIB2, 2, 0x40200 << 12 | LEAF | PSE)
    for i in range(3):
        image.set(base + 2 * MIB2 + (i << 12), 1, (0x40400 + i) << 12 | LEAF)
    (run,) = mappings(loaded(image))
    assert (int(run["va"]), int(run["pa"]), int(run["npages"])) == (base, 0x40000 << 12, 1027)


def test_permissions_of_upper_entries_count():
    image = TableImage()
    image.set(0x1000, 1, 5 << 12 | 0x867)
    image.set(0x2000, 1, 6 << 12 | 0x861)
    image.set(0, 2, int(image.data[image.table(0, 2), 0]) & ~2)
    image.set(0, 4, int(image.data[1, 0]) | 1 << 63)
    flags = int(MAPPING_USER | MAPPING_NX)
    assert mappings(loaded(image)).tolist() == [
        (0x1000, 0x5000, 1, flags),
        (0x2000, 0x6000, 1, int(MAPPING_NX)),
    ]
    assert len(mappings(loaded(image), split_by="address")) == 1


def test_a_table_that_points_to_itself_is_walked_as_hardware_does():
    image = TableImage()
    image.set(0x1000, 1, 5 << 12 | LEAF)
    image.data[1, 300] = 1 << 12 | TABLE
    tables = loaded(image)
    assert tables.used_twice().tolist() == [1, 2, 3]
    itself = 300 << 39 | 300 << 30 | 300 << 21 | 300 << 12 | ALL ^ (1 << 48) - 1
    vas = np.array([itself, itself & ~0xFFF & ~(511 << 12), 0x1234], dtype=np.uint64)
    assert translate(tables, vas, backend="cpu").physical.tolist() == [0x1000, 0x2000, 0x5234]
    assert len(expanded(mappings(tables))[0]) == pages_in_tables(tables)


def test_tables_that_share_everything_end():
    # Every entry of every level points to one table a level: 2^36 pages, of 4 tables.
    image = TableImage(8)
    for level, pfn in ((4, 1), (3, 2), (2, 3)):
        image.data[pfn, :] = pfn + 1 << 12 | TABLE
        assert level
    image.data[4, :] = (7 << 12) | LEAF
    tables = loaded(image)
    assert tables.nr_tables == 4
    first = next(iter_mappings(tables, 0, 1 << 30))
    assert len(first) > 1 << 17
    with pytest.raises(ValueError, match="max_runs"):
        mappings(tables, 0, 1 << 31, max_runs=1 << 18)
    with pytest.raises(ValueError, match="point to each other"):
        mappings(tables, max_tables=1 << 12)
    assert len(mappings(tables, 0, MIB2)) == 512


def test_reserved_and_missing_are_told_apart():
    image = TableImage(8)
    image.set(0x1000, 1, 5 << 12 | LEAF)
    image.data[1, 1] = 3 << 12 | TABLE | PSE
    image.data[1, 2] = 99 << 12 | TABLE
    tables = loaded(image)
    result = translate(tables, np.array([1 << 39, 2 << 39, 3 << 39], dtype=np.uint64), backend="cpu")
    assert result.reasons.tolist() == [Reason.RESERVED, Reason.MISSING, Reason.NONE]
    assert tables.fault_counts() == {"table missing from the image": 1, "reserved bit set": 1}
    assert tables.faults["va"].tolist() == [1 << 39, 2 << 39]


def test_bad_arguments():
    tables = loaded(random_image(random.Random(1)))
    with pytest.raises(ArrayTypeError, match="uint64"):
        translate(tables, np.zeros(3, dtype=np.int64))
    with pytest.raises(ArrayTypeError, match="uint64"):
        translate(tables, [1, 2])
    with pytest.raises(ValueError, match="one word for each"):
        translate(tables, np.zeros(3, dtype=np.uint64), out=np.zeros(2, dtype=np.uint64))
    for start, npages in [(1, 1), (0, -1), ((1 << 47) - 4096, 2), (1 << 50, 1), (-4096, 1)]:
        with pytest.raises(ValueError, match="range must"):
            translate_range(tables, start, npages)
    with pytest.raises(ValueError, match="split_by"):
        mappings(tables, split_by="size")
    with pytest.raises(ValueError, match="multiples of 4096"):
        mappings(tables, 1, 4096)
    with pytest.raises(TypeError, match="must be an AddressSpace"):
        translate("tables", np.zeros(1, dtype=np.uint64))


def test_the_reference_shares_no_code():
    image = TableImage()
    image.set(0x1000, 1, 0xABC << 12 | LEAF)
    assert translate_va(loaded(image), 0x1FFF) == 1 << 52 | 0xABCFFF
    assert ADDRESS >> 52 == 0
