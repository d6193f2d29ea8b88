"""Entries as ints compared with the uint64 of the walks, which read the same bits; and what changes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuhmm.mm import entry as e
from gpuhmm.mm import x86
from gpuhmm.mm.profile import PROFILES

#: Every bit of an entry has a say somewhere: any 64 of them.
ENTRIES = st.integers(0, (1 << 64) - 1)


@given(ENTRIES)
def test_ints_are_read_as_the_walks_read_them(entry):
    word = np.uint64(entry)
    assert e.is_none(entry) == x86.entry_none(word)
    assert e.table_pfn(entry) == x86.table_pfn(word)
    assert e.swp_type_of(entry) == x86.swp_type(word)
    assert e.swp_offset(entry) == x86.swp_offset(word)
    if not e.is_none(entry):
        assert e.pfn_of(entry) == x86.pte_pfn(word)
        assert e.huge_pfn_of(entry | e.PSE) == x86.pmd_pfn(word | x86.PAGE_PSE)


@given(st.integers(0, 31), st.integers(0, (1 << 50) - 1), st.integers(0, 31))
def test_a_swap_entry_under_another_type_keeps_offset_and_software_bits(swp_type, offset, other):
    entry = e.encode_swap(swp_type, offset) | 0xE  # soft-dirty, uffd-wp, exclusive: bits 1, 2, 3
    assert (e.swp_type_of(entry), e.swp_offset(entry)) == (swp_type, offset)
    assert e.swp_with_type(entry, other) == e.encode_swap(other, offset) | 0xE
    # Bits 0 and 4 to 8 belong to nobody in a swap entry, and are not kept.
    assert e.swp_with_type(entry | 0x1F1, other) == e.encode_swap(other, offset) | 0xE


@pytest.mark.parametrize(("swp_type", "offset"), [(32, 0), (-1, 0), (0, 1 << 50), (0, -1)])
def test_a_swap_entry_must_have_room(swp_type, offset):
    with pytest.raises(ValueError, match="a swap type must be below 32 and an offset below 2\\^50"):
        e.encode_swap(swp_type, offset)


@pytest.mark.parametrize("level", [2, 3, 4, 5])
def test_what_stands_behind_an_upper_entry(level):
    # PSE is a page size at levels 2 and 3 only; DEVMAP, bit 58 or 57, where the kernel has it.
    for kernel, devmap in (("v6.1", 1 << 58), ("v6.12", 1 << 57), ("v6.17", 0)):
        huge_bits = PROFILES[kernel].huge_bits
        assert huge_bits == 1 << 7 | devmap
        for huge in (1 << 7, devmap or 1 << 7):
            assert e.is_leaf(0x5067 | huge, level, huge_bits) == (level <= 3)
            assert e.points_to_table(0x5067 | huge, level, huge_bits) == (level > 3)
        assert e.points_to_table(0x5067 | (1 << 58 | 1 << 57) & ~devmap, level, huge_bits)
        assert not e.points_to_table(0x5066, level, huge_bits)
    assert e.table_pfn(0x8000_0000_0000_5067) == 5
