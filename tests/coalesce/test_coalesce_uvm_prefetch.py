"""The prefetch tree of UVM: masks worked by hand, and any mask against a tree of sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuhmm.coalesce.drivers.uvm.prefetch import BlockPrefetch, prefetch_mask

CPU, GPU = 0, 1


def mask(*pages):
    made = np.zeros(512, dtype=np.bool_)
    made[list(pages)] = True
    return made


def pages(found):
    return np.flatnonzero(found).tolist()


def prefetched(faulted, resident=(), thrashing=(), **options):
    found = [
        prefetch_mask(mask(*faulted), mask(*resident), mask(*thrashing), compiled=compiled, **options)
        for compiled in (True, False)
    ]
    assert np.array_equal(*found)
    return pages(found[0])


def without(low, high, *left_out):
    return [page for page in range(low, high) if page not in left_out]


def test_a_fault_grows_to_its_big_page():
    assert prefetched([0]) == without(0, 16, 0)
    assert prefetched([37]) == without(32, 48, 37)
    assert prefetched([511]) == without(496, 512, 511)


def test_half_of_a_node_is_not_enough():
    # 32 of 64 pages are set.
    assert prefetched([0, 16]) == without(0, 32, 0, 16)
    # 48 of 64 are, and 48 of 128.
    assert prefetched([0, 16, 32]) == without(0, 64, 0, 16, 32)
    assert prefetched([0, 32]) == without(0, 16, 0) + without(32, 48, 32)


# 51 percent of 128 are 65.28: 66 pages are more, 65 are not.
LEAST = {4: 3, 8: 5, 16: 9, 32: 17, 64: 33, 128: 66, 256: 131, 512: 262}


@pytest.mark.parametrize("size", LEAST)
@pytest.mark.parametrize("base", [0, 1])
def test_more_than_51_percent_at_every_level(size, base):
    first = base * (512 - size)
    # A thrashing page keeps the fault from growing; the others of the node are resident from its end on.
    fault, thrashing = first, first + 1
    resident = range(first + size - (LEAST[size] - 1), first + size)
    assert prefetched([fault], resident, [thrashing]) == without(first, first + size, fault, thrashing)
    assert prefetched([fault], resident[1:], [thrashing]) == []


def test_thrashing_pages_stop_growth_but_count():
    assert prefetched([0], thrashing=[3]) == []
    # Page 0 and the second big page are 17 of 32.
    assert prefetched([0, 16], thrashing=[3]) == without(0, 32, 0, 3, 16)
    # The fault on page 3 is not asked about, yet it is set in the tree: 3 of 4 pages.
    assert prefetched([0, 1, 3], thrashing=[3]) == [2]


def test_all_faults_on_thrashing_pages_prefetch_nothing():
    assert prefetched([5], range(16, 512), [5]) == []


def test_resident_pages_stay_in_the_mask():
    assert prefetched([0], resident=[1, 2, 3]) == without(0, 16, 0)


def test_a_small_region_without_a_big_page_is_one_unit():
    assert prefetched([5], first=3, outer=10) == without(3, 10, 5)
    assert prefetched([5], thrashing=[9], first=3, outer=10) == []
    # 10 to 22 has no whole big page either, although it has pages of two.
    assert prefetched([10], first=10, outer=22) == without(10, 22, 10)
    assert prefetched([7], first=7, outer=8) == []


def test_what_lies_before_the_first_big_page_is_one_unit():
    # Page 8 is leaf 8: the 16 leaves of its big page are half set.
    assert prefetched([9], first=8, outer=64) == without(8, 16, 9)
    # 12 of 16 leaves; the region begins where the node does not.
    assert prefetched([9], first=4, outer=64) == without(4, 16, 9)
    # 12 + 16 + 16 of 64 leaves are 68 percent, of the 60 pages that there are.
    assert prefetched([9, 16, 32], first=4, outer=64) == without(4, 64, 9, 16, 32)


def test_the_last_node_of_a_level_may_be_smaller():
    # Pages 32 to 39 fill the last node of 16 and of 32 leaves; of all 40 leaves they are a fifth.
    assert prefetched([33], first=0, outer=40) == without(32, 40, 33)
    # 24 of 40 are 60 percent, though 24 of 64 would be 37.
    assert prefetched([0, 33], first=0, outer=40) == without(0, 40, 0, 33)


def test_thresholds():
    assert prefetched([100], threshold=0) == without(0, 512, 100)
    assert prefetched([100], threshold=100) == []
    assert prefetched([0, 16], threshold=49) == without(0, 64, 0, 16)


def test_bad_masks_and_regions():
    with pytest.raises(TypeError, match="faulted must be a numpy array of bool"):
        prefetch_mask(np.zeros(512, dtype=np.uint8))
    with pytest.raises(ValueError, match="resident must have the shape"):
        prefetch_mask(mask(1), np.zeros(16, dtype=np.bool_))
    with pytest.raises(ValueError, match="must not be empty"):
        prefetch_mask(mask(), first=4, outer=4)
    with pytest.raises(ValueError, match="must lie in the region"):
        prefetch_mask(mask(3), first=4, outer=8)
    with pytest.raises(ValueError, match="threshold must be"):
        prefetch_mask(mask(3), threshold=101)
    with pytest.raises(ValueError, match="min_faults must be"):
        BlockPrefetch(min_faults=21)


def test_as_many_pages_as_asked_for_must_migrate_to_one_processor():
    block = BlockPrefetch(min_faults=3)
    assert pages(block.hint(GPU, mask(0, 1))) == []
    assert pages(block.hint(GPU, mask(2))) == without(0, 16, 2)
    assert pages(block.hint(CPU, mask(0, 1))) == []
    assert pages(block.hint(GPU, mask(0, 1))) == []


def test_nothing_is_prefetched_out_of_the_preferred_location():
    assert pages(BlockPrefetch().hint(GPU, mask(0), preferred=CPU)) == []
    assert pages(BlockPrefetch().hint(GPU, mask(0), preferred=GPU)) == without(0, 16, 0)


def test_a_first_touch_of_the_preferred_location_brings_the_region():
    found = BlockPrefetch().hint(
        GPU, mask(70), thrashing=mask(71), preferred=GPU, resident_anywhere=False, first=64, outer=200
    )
    assert pages(found) == without(64, 200, 70, 71)


def by_sets(faulted, resident, thrashing, first, outer, threshold):
    """Return the pages to prefetch, with nodes as sets of pages of a block without an offset."""
    big = [range(low, low + 16) for low in range(-(-first // 16) * 16, outer // 16 * 16, 16)]
    units = [range(first, outer)]
    if big:
        units = [range(first, big[0][0]), *big, range(big[-1][-1] + 1, outer)]
    present = {page for page in faulted | resident if first <= page < outer}
    for unit in units:
        if faulted & set(unit) and not thrashing & set(unit):
            present |= set(unit)
    # Nodes are aligned in the block where there are big pages, else in the region.
    origin = first // 16 * 16 if big else first
    wanted = set()
    for page in faulted - thrashing:
        best = set()
        size = 1
        while True:
            low = origin + (page - origin) // size * size
            # Leaves before the region count as pages that are not there.
            leaves = min(low + size, outer) - low
            node = {p for p in range(low, low + size) if first <= p < outer}
            if 100 * len(node & present) > leaves * threshold:
                best = node
            if size >= outer - origin:
                break
            size *= 2
        wanted |= best
    return sorted(wanted - faulted - thrashing)


@st.composite
def cases(draw):
    first = draw(st.integers(0, 511))
    outer = draw(st.integers(first + 1, 512))
    if draw(st.booleans()):
        first, outer = 0, 512
    page = st.integers(first, outer - 1)
    faulted = draw(st.sets(page, min_size=1, max_size=20))
    resident = draw(st.sets(st.integers(0, 511), max_size=20))
    for low, many in draw(st.lists(st.tuples(page, st.integers(1, 200)), max_size=3)):
        resident |= set(range(low, min(low + many, 512)))
    thrashing = draw(st.sets(page, max_size=4))
    return faulted, resident, thrashing, first, outer, draw(st.sampled_from((51, 51, 1, 25, 50, 75, 99)))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_the_tree_is_that_of_sets(case):
    faulted, resident, thrashing, first, outer, threshold = case
    found = prefetch_mask(
        mask(*faulted), mask(*resident), mask(*thrashing), first=first, outer=outer, threshold=threshold
    )
    assert pages(found) == by_sets(*case)


@settings(max_examples=15, deadline=None)
@given(cases())
def test_compiled_and_plain_are_the_same(case):
    faulted, resident, thrashing, first, outer, threshold = case
    prefetched(faulted, resident, thrashing, first=first, outer=outer, threshold=threshold)
