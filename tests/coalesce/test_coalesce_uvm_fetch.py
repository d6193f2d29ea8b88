"""Merging at fetch, order, duplicates and replays of UVM, in examples worked by hand."""

import pytest

from gpuhmm.coalesce.access import (
    ACCESS_ATOMIC_STRONG,
    ACCESS_PREFETCH,
    ACCESS_READ,
    ACCESS_WRITE,
)
from gpuhmm.coalesce.drivers.uvm.fetch import Fetch, fetch
from gpuhmm.coalesce.drivers.uvm.replay import PrefetchFaults, updates_put
from gpuhmm.coalesce.drivers.uvm.sort import count_duplicates, group_by_window, sort_representatives
from gpuhmm.coalesce.trace import FaultTrace

A, B = 0x1000, 0x2000
PREFETCH, READ, WRITE, ATOMIC = ACCESS_PREFETCH, ACCESS_READ, ACCESS_WRITE, ACCESS_ATOMIC_STRONG


def batch(*faults):
    """Return a fetched batch of faults (va, access, µTLB) or (va, access, µTLB, space)."""
    made = Fetch()
    for va, access, utlb, *space in faults:
        made.add(space[0] if space else 0, va, access, utlb)
    return made


def represented(made):
    return [made.representative(entry.index).index for entry in made.entries]


def left(made):
    """Return (index, instances, access mask) of each representative."""
    return [(entry.index, entry.instances, entry.access_mask) for entry in made.representatives()]


def test_a_fault_merges_with_the_last_of_its_utlb():
    # Another page of another µTLB lies between: the batch's last fault does not matter.
    made = batch((A, READ, 0), (B, READ, 1), (A, READ, 0))
    assert represented(made) == [0, 1, 0]
    assert left(made) == [(0, 2, 1 << READ), (1, 1, 1 << READ)]
    assert made.coalesced == 2


def test_only_the_last_fault_of_the_utlb_is_looked_at():
    made = batch((A, READ, 0), (B, READ, 0), (A, READ, 0))
    assert represented(made) == [0, 1, 2]


def test_a_more_intrusive_fault_of_the_utlb_becomes_the_representative():
    made = batch((A, READ, 0), (A, READ, 0), (B, READ, 1), (A, WRITE, 0), (A, PREFETCH, 0))
    assert represented(made) == [3, 3, 2, 3, 3]
    assert left(made) == [(2, 1, 1 << READ), (3, 4, 1 << READ | 1 << WRITE | 1 << PREFETCH)]
    assert made.coalesced == 2


def test_a_fault_merges_with_the_last_of_the_batch_if_it_is_no_more_intrusive():
    made = batch((A, WRITE, 0), (A, WRITE, 1), (A, READ, 2))
    assert represented(made) == [0, 0, 0]
    assert left(made) == [(0, 3, 1 << WRITE | 1 << READ)]


def test_a_more_intrusive_fault_of_another_utlb_stays():
    made = batch((A, READ, 0), (A, WRITE, 1), (A, READ, 2))
    assert represented(made) == [0, 1, 1]
    assert left(made) == [(0, 1, 1 << READ), (1, 2, 1 << WRITE | 1 << READ)]


def test_a_merged_fault_is_not_the_last_of_its_utlb():
    # µTLB 1 has no fault of its own after the second entry, and the batch's last is of page B.
    made = batch((A, READ, 0), (A, READ, 1), (B, READ, 2), (A, READ, 1))
    assert represented(made) == [0, 0, 2, 3]


def test_other_spaces_do_not_merge():
    made = batch((A, READ, 0, 0), (A, READ, 0, 1), (A, READ, 1, 0))
    assert represented(made) == [0, 1, 2]


def test_the_last_fault_of_the_batch_is_stale_after_its_utlb_replaced_it():
    # 1 replaces 0, but 0 is still the batch's last.  2 merges with it and is lost to 1's counts; 3 is more
    # intrusive than 0, though not than 1, and stays on its own.
    made = batch((A, READ, 0), (A, ATOMIC, 0), (A, READ, 1), (A, WRITE, 2))
    assert represented(made) == [1, 1, 1, 3]
    assert left(made) == [(1, 2, 1 << READ | 1 << ATOMIC), (3, 1, 1 << WRITE)]
    ordered = sort_representatives(made.representatives())
    assert [(item.entry.index, item.duplicate) for item in ordered] == [(1, False), (3, True)]
    # Three of the four faults are duplicates; the driver counts two.
    assert count_duplicates(ordered) == 2


def test_nothing_merges_when_coalescing_is_off():
    made = fetch(FaultTrace.of(va=[A, A, A]), merge=False)
    assert represented(made) == [0, 1, 2]
    assert made.coalesced == 3


def test_unknown_accesses_are_refused():
    with pytest.raises(ValueError, match="access must be 0 to 4"):
        Fetch().add(0, A, 5, 0)


def test_the_order_is_space_address_and_the_most_intrusive_first():
    faults = [(B, READ, 0, 1), (B, READ, 1, 0), (A, READ, 2, 1), (B, WRITE, 3, 0), (A, PREFETCH, 4, 0)]
    ordered = sort_representatives(batch(*faults).representatives())
    assert [item.entry.index for item in ordered] == [4, 3, 1, 2, 0]
    assert [item.duplicate for item in ordered] == [False, False, True, False, False]


def test_equal_faults_keep_the_order_of_the_buffer():
    faults = [(A, READ, 0), (B, READ, 1), (A, READ, 2), (B, READ, 3), (A, READ, 4)]
    ordered = sort_representatives(batch(*faults).representatives())
    assert [item.entry.index for item in ordered] == [0, 2, 4, 1, 3]
    assert count_duplicates(ordered) == 3


def test_groups_are_va_blocks_of_one_space():
    block = 1 << 21
    faults = [(block - 4096, READ, 0), (block, READ, 1), (2 * block - 4096, READ, 2), (block, READ, 3, 1)]
    groups = group_by_window(sort_representatives(batch(*faults).representatives()))
    assert [[item.entry.index for item in group] for group in groups] == [[0], [1, 2], [3]]


def test_put_is_read_above_half_duplicates():
    assert not updates_put(128, 256)
    assert updates_put(129, 256)
    assert not updates_put(0, 0)


def test_prefetch_faults_go_off_above_two_thirds_and_on_after_a_second():
    faults = PrefetchFaults(256)
    assert faults.after_batch(170, 5)  # 510 of 512
    assert not faults.after_batch(171, 10)
    assert not faults.after_batch(256, 1_000_000_010)
    assert faults.after_batch(256, 1_000_000_011)
    assert not faults.after_batch(256, 1_000_000_012)
    assert PrefetchFaults(256, lapse_ms=0).after_batch(256, 1)
