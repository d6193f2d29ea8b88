"""A range of 2 MiB parts: which of them have entries, and of what kind."""

import numpy as np
import pytest
from spaces import BASE, RW

import gpuhmm
from gpuhmm.memory import File, PhysicalMemory
from gpuhmm.memory.pmd_range import split_to_ptes, walk_pmd_range
from gpuhmm.mm.entry import encode_swap

MIB2, GIB = 1 << 21, 1 << 30


@pytest.fixture
def mm():
    """Return an area of 4 GiB: PTEs at 0, at 2 MiB a huge page, at 4 a migration, at 1 GiB a page of it."""
    made = gpuhmm.AddressSpace(kernel="v6.1")
    made.mmap(BASE, BASE + 4 * GIB, RW)
    made.map_pfns(BASE + 4096, np.array([7], dtype=np.uint64))
    made.map_pfns(BASE + MIB2, np.array([512], dtype=np.uint64), level=2)
    made.set_entry(BASE + 2 * MIB2, 2, encode_swap(24, 1024))
    made.set_entry(BASE + 3 * MIB2, 2, 0x60)  # A and D alone: none
    made.map_pfns(BASE + GIB, np.array([1 << 18], dtype=np.uint64), level=3)
    made.map_pfns(BASE + 3 * GIB, np.array([2048], dtype=np.uint64), level=2)
    return made


def test_only_what_is_not_none_is_met(mm):
    parts = list(walk_pmd_range(mm, BASE, BASE + 4 * GIB))
    starts = [0, MIB2, 2 * MIB2, 3 * GIB]
    assert [part.va - BASE for part in parts] == starts
    assert [part.past - BASE for part in parts] == [start + MIB2 for start in starts]
    assert [part.is_table for part in parts] == [True, False, False, False]
    assert [part.pmd for part in parts] == [mm.entry(BASE + start, 2) for start in starts]
    assert all(part.is_whole for part in parts)


def test_a_part_is_cut_where_the_range_is(mm):
    first, last = walk_pmd_range(mm, BASE + 4096, BASE + MIB2 + 3 * 4096)
    assert list(first.ptes) == list(range(BASE + 4096, BASE + MIB2, 4096))
    assert list(last.ptes) == [BASE + MIB2, BASE + MIB2 + 4096, BASE + MIB2 + 2 * 4096]
    assert not first.is_whole
    assert not last.is_whole


def test_a_part_is_looked_at_when_its_turn_comes(mm):
    parts = walk_pmd_range(mm, BASE, BASE + 2 * MIB2)
    next(parts)
    mm.set_entry(BASE + MIB2, 2, 0)
    assert list(parts) == []


def test_an_anonymous_huge_page_is_split_to_ptes_and_one_of_a_file_is_not(mm):
    vma = mm.vmas[0]
    assert split_to_ptes(mm, vma, BASE + MIB2)
    assert mm.entry(BASE + MIB2 + 4096, 1) >> 12 & 0xFFFF == 513
    shared = gpuhmm.AddressSpace(kernel="v6.1", memory=PhysicalMemory())
    area = shared.mmap(BASE, BASE + MIB2, RW, file=File(shared.memory, MIB2, "shmem"))
    shared.map_pfns(BASE, np.array([512], dtype=np.uint64), level=2)
    assert not split_to_ptes(shared, area, BASE)
    assert shared.entry(BASE, 2) == 0


def test_without_memory_nothing_is_split(mm):
    mm.memory.limit_frames(0)
    before = mm.entry(BASE + MIB2, 2)
    assert not split_to_ptes(mm, mm.vmas[0], BASE + MIB2)
    assert mm.entry(BASE + MIB2, 2) == before
