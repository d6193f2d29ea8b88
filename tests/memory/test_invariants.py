"""The checker of a machine's state finds what it is there for."""

from __future__ import annotations

import pytest

import gpuhmm
from gpuhmm.memory import PhysicalMemory, check_invariants, fork, store, swap_out
from gpuhmm.memory.pages.page import PG_ANON_EXCLUSIVE, PG_SWAPCACHE
from gpuhmm.mm.vma import VM_HUGEPAGE, VM_READ, VM_WRITE

BASE = 1 << 40
PAGE = 4096


@pytest.fixture
def mm():
    space = gpuhmm.AddressSpace(kernel="v6.1", memory=PhysicalMemory())
    space.mmap(BASE, BASE + 16 * PAGE)
    space.mmap(BASE + (2 << 20), BASE + (4 << 20), VM_READ | VM_WRITE | VM_HUGEPAGE)
    for page in range(8):
        store(space, BASE + page * PAGE, page)
    store(space, BASE + (2 << 20), 1)
    swap_out(space, BASE + 6 * PAGE, BASE + 8 * PAGE)
    check_invariants(space.memory)
    return space


def pfn_at(mm, page):
    return mm.entry(BASE + page * PAGE, 1) >> 12 & 0xFF_FFFF_FFFF


def a_reference_too_many(mm):
    mm.memory.pages.get(pfn_at(mm, 0))


def an_entry_that_is_not_counted(mm):
    mm.set_entry(BASE + 9 * PAGE, 1, mm.entry(BASE, 1))


def an_entry_that_vanished(mm):
    mm.set_entry(BASE, 1, 0)


def a_shared_page_that_is_exclusive(mm):
    fork(mm)
    mm.memory.pages.set_flags(pfn_at(mm, 0), PG_ANON_EXCLUSIVE)


def a_page_in_the_swap_cache_without_a_slot(mm):
    mm.memory.pages.set_flags(pfn_at(mm, 0), PG_SWAPCACHE)


def a_swap_slot_that_is_named_once_too_often(mm):
    mm.set_entry(BASE + 9 * PAGE, 1, mm.entry(BASE + 6 * PAGE, 1))


def a_used_page_that_is_free(mm):
    mm.memory.free.give(pfn_at(mm, 0))


def a_table_that_is_reached_twice(mm):
    mm.page_tables.set_entry(BASE + (8 << 20), 2, mm.entry(BASE, 2))


def a_table_that_is_lost(mm):
    mm.page_tables.set_entry(BASE, 2, 0)


def a_huge_page_counted_once_too_often(mm):
    head = mm.entry(BASE + (2 << 20), 2) >> 12 & 0xFF_FFFF_FFFF
    mm.memory.pages.add_mapcount(head + 77, 1)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (a_reference_too_many, "must have 1 references"),
        (an_entry_that_is_not_counted, "must be counted as mapped 2 times"),
        (an_entry_that_vanished, "must be counted as mapped 0 times"),
        (a_shared_page_that_is_exclusive, "exclusive page"),
        (a_page_in_the_swap_cache_without_a_slot, "must know of its swap slot"),
        (a_swap_slot_that_is_named_once_too_often, "must be named 2 times"),
        (a_used_page_that_is_free, "must not be free and in use"),
        (a_table_that_is_reached_twice, "must be reached once"),
        (a_table_that_is_lost, "every table must be reached"),
        (a_huge_page_counted_once_too_often, "must be counted as mapped 1 times"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_is_found(mm, spoil, words):
    spoil(mm)
    with pytest.raises(AssertionError, match=words):
        check_invariants(mm.memory)


def test_misuse_is_refused_at_once(mm):
    memory, pfn = mm.memory, pfn_at(mm, 0)
    with pytest.raises(ValueError, match="fewer than no references"):
        memory.put_page(pfn, 2)
    with pytest.raises(ValueError, match="freed twice"):
        memory.free.give(memory.free.peek_run(1)[0])
    with pytest.raises(ValueError, match="more often than it is named"):
        memory.swap.free(12345)
    with pytest.raises(ValueError, match="thp must be"):
        PhysicalMemory(thp="sometimes")
