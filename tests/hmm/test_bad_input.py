"""What a caller does wrong is told before anything is changed."""

import numpy as np
import pytest
from spaces import BASE, anonymous, words

import gpuhmm


def one_page(pfn, *entries):
    """Return table PFN and page with (slot, value) entries."""
    page = np.zeros(512, dtype=np.uint64)
    for slot, value in entries:
        page[slot] = value
    return pfn, page


def build(*pages, **overrides):
    """Return from_tables of those pages; the first is the root."""
    given = {
        "levels": 4,
        "root_pfn": pages[0][0],
        "table_pfns": words(*(pfn for pfn, _ in pages)),
        "tables": np.stack([page for _, page in pages]),
        "vmas": [],
    }
    return gpuhmm.AddressSpace.from_tables(**{**given, **overrides})


def link(pfn):
    """Return an entry that points to a table."""
    return pfn << 12 | 0x67


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ([one_page(1, (0, link(2)))], "level 4 entry of va 0x0 points to table PFN 0x2, which is missing"),
        (
            [one_page(1, (1, link(2))), one_page(2, (3, link(9)))],
            "level 3 entry of va 0x80c0000000 points to table PFN 0x9, which is missing",
        ),
        ([one_page(1, (0, link(1)))], "a cycle"),
        ([one_page(1, (0, link(2))), one_page(2, (0, link(1)))], "a cycle"),
        (
            [one_page(1, (0, link(2)), (1, link(3))), one_page(2, (0, link(3))), one_page(3)],
            "at two levels|a cycle",
        ),
        ([one_page(1), one_page(1)], "distinct"),
        ([one_page(1), one_page(1 << 40)], "below 2\\^40"),
    ],
    ids=["missing", "missing-below", "self", "cycle", "two-levels", "twice", "pfn-53-bits"],
)
def test_tables_that_form_no_tree(pages, message):
    with pytest.raises(ValueError, match=message):
        build(*pages)


def test_a_table_of_two_levels_through_set_entry_changes_nothing():
    mm = anonymous(1)
    mm.map_pfns(BASE, words(5))
    before = mm.tables()
    leaf_pfn = mm.entry(BASE, 2) >> 12
    with pytest.raises(ValueError, match="two levels"):
        mm.set_entry(BASE + (1 << 30), 3, link(leaf_pfn))
    assert all((a == b).all() for a, b in zip(before, mm.tables(), strict=True))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"levels": 3}, "levels must be 4 or 5"),
        ({"kernel": "v2.6"}, "kernel must be .* 'v2.6'"),
        ({"root_pfn": 77}, "root_pfn must be one of table_pfns"),
        ({"zero_pfn": 1 << 40}, "zero_pfn must be a PFN below"),
        ({"highest_memmap_pfn": 1 << 52}, "highest_memmap_pfn must be a PFN below"),
        ({"table_pfns": np.array([1], dtype=np.int64)}, "uint64"),
        ({"tables": np.zeros((1, 512))}, "uint64"),
        ({"tables": np.zeros((2, 512), dtype=np.uint64)}, "shape"),
        ({"tables": np.zeros((1, 1024), dtype=np.uint64)[:, ::2]}, "contiguous"),
        ({"device_private": [(5, 5, 1)]}, "first < end"),
        ({"device_private": [(5, 9, 1), (8, 12, 2)]}, "overlap"),
        ({"vmas": [gpuhmm.Vma(0x1000, 0x3000, 1), gpuhmm.Vma(0x2000, 0x4000, 1)]}, "overlap"),
        ({"vmas": [gpuhmm.Vma(0, 1 << 50, 1)]}, "below 0x1000000000000"),
    ],
)
def test_bad_arguments_of_from_tables(overrides, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(one_page(1), **overrides)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0x1000, 0x1000, 1), "start < end"),
        ((0x2000, 0x1000, 1), "start < end"),
        ((0x1001, 0x2000, 1), "multiple of its page size"),
        ((0x1000, 0x2000, 1, 21), "multiple of its page size"),
        ((0x1000, 0x2000, 1, 13), "page_shift"),
        ((0x1000, 0x2000, -1), "flags"),
    ],
)
def test_bad_vmas(arguments, message):
    with pytest.raises(ValueError, match=message):
        gpuhmm.Vma(*arguments)


def range_of(mm, start=BASE, end=BASE + 4 * 4096, hmm_pfns=None, **fields):
    """Return an HmmRange over four pages, with some fields overridden."""
    notifier = mm.notifier(BASE, BASE + 4 * 4096)
    hmm_pfns = np.zeros(4, dtype=np.uint64) if hmm_pfns is None else hmm_pfns
    return gpuhmm.HmmRange(notifier, start, end, hmm_pfns, notifier_seq=notifier.read_begin(), **fields)


READ_ONLY = np.zeros(4, dtype=np.uint64)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"start": BASE + 1}, "page aligned"),
        ({"end": BASE + 17}, "page aligned"),
        ({"start": BASE + 8192, "end": BASE}, "must not lie above end"),
        ({"end": 1 << 49}, "must not exceed"),
        ({"hmm_pfns": np.zeros(4, dtype=np.int64)}, "uint64"),
        ({"hmm_pfns": np.zeros(4)}, "uint64"),
        ({"hmm_pfns": np.zeros(5, dtype=np.uint64)}, "one word a page"),
        ({"hmm_pfns": np.zeros((4, 1), dtype=np.uint64)}, "one word a page"),
        ({"hmm_pfns": np.zeros(8, dtype=np.uint64)[::2]}, "contiguous"),
        ({"hmm_pfns": [0, 0, 0, 0]}, "uint64"),
        ({"hmm_pfns": READ_ONLY}, "writable"),
        ({"default_flags": 1 << 64}, "64 unsigned bits"),
        ({"pfn_flags_mask": -1}, "64 unsigned bits"),
    ],
)
def test_bad_ranges(overrides, message):
    with pytest.raises(ValueError, match=message):
        range_of(anonymous(4), **overrides)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hmm_pfns", np.zeros(3, dtype=np.uint64), "one word a page"),
        ("hmm_pfns", READ_ONLY, "writable"),
        ("end", BASE + 4 * 4096 + 8, "page aligned"),
        ("notifier_seq", -1, "64 unsigned bits"),
        ("default_flags", 1 << 64, "64 unsigned bits"),
        ("dev_private_owner", np.int64(-5), "64 unsigned bits"),
        ("notifier", None, "must come from AddressSpace.notifier"),
    ],
)
def test_a_range_that_was_spoiled_later_is_refused_by_the_call(name, value, message):
    range_ = range_of(anonymous(4))
    setattr(range_, name, value)
    with pytest.raises((ValueError, TypeError), match=message):
        gpuhmm.hmm_range_fault(range_, backend="reference")


def test_numbers_of_numpy_become_those_of_python():
    range_ = range_of(anonymous(4), np.uint64(BASE), default_flags=np.uint64(1 << 63))
    range_.pfn_flags_mask = np.uint64(3 << 62)
    range_.check()
    assert (type(range_.start), type(range_.default_flags), type(range_.pfn_flags_mask)) == (int, int, int)
    assert (range_.start, range_.default_flags, range_.pfn_flags_mask) == (BASE, 1 << 63, 3 << 62)


def test_unknown_back_end():
    with pytest.raises(ValueError, match=r"backend must be .*'opencl'"):
        gpuhmm.hmm_range_fault(range_of(anonymous(4)), backend="opencl")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_wild_pud_is_reported_with_its_address(backend):
    mm = anonymous(4)
    mm.make_tables(BASE, 3)
    mm.set_entry(BASE, 3, 0x555 << 12 | 0x66)  # not present, not none: the kernel would follow it
    range_ = range_of(mm)
    with pytest.raises(ValueError, match="missing"):
        gpuhmm.hmm_range_fault(range_, backend=backend)
    assert not range_.hmm_pfns.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"va": BASE + 1, "pfns": words(1)}, "multiple of the page size"),
        ({"va": BASE, "pfns": words(1 << 40)}, "below 2\\^40"),
        ({"va": BASE, "pfns": words(3), "level": 2}, "multiples of 0x200"),
        ({"va": BASE, "pfns": words(3), "level": 4}, "level must be"),
        ({"va": 0, "pfns": words(3)}, "must lie in a VMA"),
        ({"va": BASE, "pfns": [1]}, "uint64"),
    ],
)
def test_bad_mappings(arguments, message):
    with pytest.raises(ValueError, match=message):
        anonymous(4).map_pfns(**arguments)
