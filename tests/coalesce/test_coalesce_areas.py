"""The memory that a device works on: its areas, and the address spaces under them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhmm.coalesce.areas import Area, DeviceAreas
from gpuhmm.coalesce.spaces import spaces_over
from gpuhmm.mirror.page_table import DPT_VALID
from gpuhmm.mm.vma import VM_READ, Vma, VmaList

PAGE = 4096
BORDERS = st.lists(st.integers(0, 40), unique=True, max_size=14).map(sorted)


def areas_of(borders_of_spaces):
    """Return areas between every other pair of borders, some of which touch."""
    return [
        Area(space, low * PAGE, high * PAGE)
        for space, borders in enumerate(borders_of_spaces)
        for low, high in zip(borders[::2], borders[1::2], strict=False)
    ]


@given(st.lists(BORDERS, min_size=1, max_size=3), st.integers(0, 3), st.integers(0, 45), st.integers(0, 45))
def test_pieces_and_places_are_those_of_a_search_page_by_page(borders, space, first, past):
    made = DeviceAreas(areas_of(borders))
    pages = [(area.space, va) for area in made.areas for va in range(area.start, area.end, PAGE)]
    wanted = [
        (va, number)
        for number, (of, va) in enumerate(pages)
        if of == space and first * PAGE <= va < past * PAGE
    ]
    pieces = made.pieces(space, first * PAGE, past * PAGE)
    found = [
        (low + (number - begin) * PAGE, number) for low, begin, end in pieces for number in range(begin, end)
    ]
    assert found == wanted
    assert all(begin < end for _, begin, end in pieces)
    place = dict(zip(pages, range(len(pages)), strict=True)).get((space, first * PAGE), -1)
    assert made.place(space, first * PAGE) == made.place(space, first * PAGE + 5) == place
    columns = np.array([space], dtype=np.uint16), np.array([first * PAGE], dtype=np.uint64)
    assert made.places(*columns).tolist() == [place]
    made.entries[:] = DPT_VALID
    assert made.erase(space, first * PAGE, past * PAGE) == len(wanted)
    assert np.flatnonzero(made.entries == 0).tolist() == [number for _, number in wanted]


@given(st.permutations(range(8)))
def test_a_list_of_vmas_does_not_depend_on_the_order_of_adding(order):
    vmas = [Vma(at * 3 * PAGE, (at * 3 + 2 + at % 2) * PAGE, VM_READ) for at in range(8)]
    made = VmaList()
    for at in order:
        made.add(vmas[at])
        with pytest.raises(ValueError, match="must not overlap"):
            made.add(Vma(vmas[at].start + PAGE, vmas[at].end + PAGE, VM_READ))
        with pytest.raises(ValueError, match="must not overlap"):
            made.add(Vma(max(vmas[at].start - PAGE, 0), vmas[at].start + PAGE, VM_READ))
        assert made.columns().shape == (4, len(made))
    assert list(made) == vmas
    assert made.columns().tolist() == VmaList(vmas).columns().tolist()
    assert [made.find(vma.start) for vma in vmas] == vmas


def test_numbers_without_an_area_share_a_space():
    areas = DeviceAreas([Area(space, 0x200000, 0x400000) for space in (1, 3, 65535)])
    spaces = spaces_over(areas, "untouched")
    assert len(spaces) == 65536
    assert spaces[0] is spaces[2] is spaces[65534]
    assert len({id(space) for space in spaces}) == 4
    assert [len(spaces[space].vmas) for space in (0, 1, 2, 3, 65535)] == [0, 1, 0, 1, 1]
