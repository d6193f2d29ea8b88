"""The list of areas."""

from hypothesis import given
from hypothesis import strategies as st

from gpuhmm.mm.vma import VM_READ, Vma, VmaList

PAGE = 4096
BORDERS = st.lists(st.integers(0, 24), min_size=2, max_size=12, unique=True).map(sorted)


@given(BORDERS, st.integers(0, 24), st.integers(1, 24))
def test_areas_that_meet_a_range_share_an_address_with_it(borders, start, length):
    pairs = list(zip(borders[::2], borders[1::2], strict=False))
    areas = VmaList(Vma(a * PAGE, b * PAGE, VM_READ) for a, b in pairs)
    asked = set(range(start, start + length))
    found = areas.overlapping(start * PAGE, (start + length) * PAGE)
    assert [(vma.start // PAGE, vma.end // PAGE) for vma in found] == [
        (a, b) for a, b in pairs if asked & set(range(a, b))
    ]
