"""What a fault does differs between kernels: both sides of each switch of the profiles.

Right values are those of the sources named in gpuhmm/mm/profile.py, and where docs/fault-model.md says so of
driver loops recorded in running kernels.
"""

from __future__ import annotations

import pytest

from gpuhmm import AddressSpace
from gpuhmm.memory import fork, mprotect
from gpuhmm.memory.fault.handle import handle_mm_fault
from gpuhmm.memory.pages.filemap import File
from gpuhmm.mm.entry import PSE, RW, SOFT_DIRTY, SPECIAL, UFFD_WP, A, D, P, encode_swap, pfn_of
from gpuhmm.mm.handler import (
    FAULT_FLAG_WRITE,
    VM_FAULT_HWPOISON,
    VM_FAULT_NOPAGE,
    VM_FAULT_SIGBUS,
    VM_FAULT_SIGSEGV,
    VM_FAULT_WRITE,
)
from gpuhmm.mm.notifier import MMU_NOTIFY_CLEAR, MMU_NOTIFY_EXCLUSIVE, MMU_NOTIFY_MIGRATE
from gpuhmm.mm.profile import PROFILES
from gpuhmm.mm.vma import VM_HUGEPAGE, VM_READ, VM_SHARED, VM_UFFD_WP, VM_WRITE

RW_AREA = VM_READ | VM_WRITE
SAVED = 1 << 58
OLD = ("v5.18", "v6.1")
BASE = 0x40000000


def space(kernel, flags=RW_AREA, pages=512, **more):
    mm = AddressSpace(kernel=kernel)
    vma = mm.mmap(BASE, BASE + (pages << 12), flags, **more)
    return mm, vma


def write(mm, va=BASE):
    return handle_mm_fault(mm, mm.vmas.lookup(va), va, FAULT_FLAG_WRITE)


def heard(mm):
    """Return the list that fills with (event, start, end) of the notifier over the area."""
    events = []

    def invalidate(sub, range_, cur_seq):
        sub.set_seq(cur_seq)
        events.append((range_.event, range_.start, range_.end))
        return True

    mm.notifier(BASE, BASE + (512 << 12), invalidate)
    return events


@pytest.mark.parametrize("kernel", PROFILES)
def test_fork_saves_the_dirty_bit_from_v6_6_on_and_a_write_gives_it_back(kernel):
    mm, _ = space(kernel)
    write(mm)
    assert mm.entry(BASE, 1) & (RW | D | SAVED) == RW | D
    child = fork(mm)
    for one in (mm, child):
        assert one.entry(BASE, 1) & (RW | D | SAVED) == (D if kernel in OLD else SAVED)
    assert write(mm) == (VM_FAULT_WRITE if kernel in OLD else 0)
    assert mm.entry(BASE, 1) & (RW | D | SAVED) == RW | D


@pytest.mark.parametrize("kernel", PROFILES)
@pytest.mark.parametrize("flags", [RW_AREA, RW_AREA | VM_HUGEPAGE])
def test_mprotect_saves_the_dirty_bit_and_gives_rights_back(kernel, flags):
    mm, _ = space(kernel, flags)
    write(mm)
    level = 2 if flags & VM_HUGEPAGE else 1
    mprotect(mm, BASE, BASE + (512 << 12), VM_READ)
    assert mm.entry(BASE, level) & (RW | D | SAVED) == (D if kernel in OLD else SAVED)
    mprotect(mm, BASE, BASE + (512 << 12), RW_AREA)
    # can_change_pte_writable needs PageAnonExclusive (v5.19), can_change_pmd_writable is of v6.2
    writable = kernel != "v5.18" if level == 1 else kernel not in OLD
    assert mm.entry(BASE, level) & (RW | D | SAVED) == (RW | D if writable else D)


@pytest.mark.parametrize("kernel", PROFILES)
def test_the_huge_zero_page_is_replaced_from_v6_17_on(kernel):
    mm, vma = space(kernel, RW_AREA | VM_HUGEPAGE)
    handle_mm_fault(mm, vma, BASE, 0)
    special = kernel in ("v6.18", "v7.0", "v7.3")
    assert bool(mm.entry(BASE, 2) & SPECIAL) == special
    events = heard(mm)
    assert write(mm, BASE + 0x5000) in (0, VM_FAULT_WRITE)
    assert (MMU_NOTIFY_CLEAR, BASE, BASE + (512 << 12)) in events
    whole = mm.entry(BASE, 2) & PSE
    assert bool(whole) == (kernel not in (*OLD, "v6.12"))
    if whole:
        assert mm.entry(BASE, 2) & (P | RW | D | SOFT_DIRTY) == P | RW | D | SOFT_DIRTY
        assert len(events) == 1


def test_without_a_huge_page_the_huge_zero_page_is_split():
    mm, vma = space("v6.17", RW_AREA | VM_HUGEPAGE)
    handle_mm_fault(mm, vma, BASE, 0)
    mm.memory.limit_frames(4)
    assert write(mm) == 0
    assert not mm.entry(BASE, 2) & PSE


GUARD, POISON, WP = 4, 2, 1


@pytest.mark.parametrize(
    ("kernel", "marker", "ret"),
    [
        ("v6.1", POISON, VM_FAULT_SIGBUS),
        ("v6.12", POISON, VM_FAULT_HWPOISON),
        ("v6.12", GUARD, VM_FAULT_SIGBUS),
        ("v6.17", GUARD, VM_FAULT_SIGSEGV),
        ("v6.17", POISON | GUARD | WP, VM_FAULT_HWPOISON),
        ("v7.3", GUARD | WP, VM_FAULT_SIGSEGV),
        ("v7.3", 0, VM_FAULT_SIGBUS),
    ],
)
def test_a_marker_tells_what_a_fault_returns(kernel, marker, ret):
    mm, vma = space(kernel)
    mm.make_tables(BASE, 1)
    mm.set_entry(BASE, 1, encode_swap(mm.kernel.swp_pte_marker, marker))
    assert handle_mm_fault(mm, vma, BASE, 0) == ret


@pytest.mark.parametrize(("kernel", "kept"), [("v6.1", False), ("v6.12", True)])
def test_a_uffd_wp_marker_of_untouched_memory_protects_its_page_from_v6_4_on(kernel, kept):
    mm, vma = space(kernel, RW_AREA | VM_UFFD_WP)
    mm.make_tables(BASE, 1)
    mm.set_entry(BASE, 1, encode_swap(mm.kernel.swp_pte_marker, WP))
    assert handle_mm_fault(mm, vma, BASE, 0) == 0
    pte = mm.entry(BASE, 1)
    assert (bool(pte & UFFD_WP) and pfn_of(pte) == mm.zero_pfn) if kept else pte == 0


def test_markers_that_last_are_copied_by_fork():
    mm, _ = space("v6.17")
    mm.make_tables(BASE, 1)
    write(mm, BASE + 0x1000)
    mm.set_entry(BASE, 1, encode_swap(mm.kernel.swp_pte_marker, GUARD | WP))
    assert fork(mm).entry(BASE, 1) == encode_swap(mm.kernel.swp_pte_marker, GUARD)


@pytest.mark.parametrize("kernel", PROFILES)
def test_dax_entries_have_the_devmap_bit_of_their_kernel(kernel):
    mm = AddressSpace(kernel=kernel)
    file = File(mm.memory, 0x10000, "dax")
    mm.mmap(BASE, BASE + 0x10000, RW_AREA | VM_SHARED, file=file)
    assert write(mm) == VM_FAULT_NOPAGE
    devmap = {"v5.18": 58, "v6.1": 58, "v6.12": 57}.get(kernel)
    expected = 0 if devmap is None else 1 << devmap | SPECIAL
    assert mm.entry(BASE, 1) & (1 << 57 | 1 << 58 | SPECIAL) == expected
    mm.set_entry(BASE, 1, mm.entry(BASE, 1) & ~RW)
    assert write(mm) == VM_FAULT_NOPAGE  # wp_pfn_shared: DAX put the entry in place


@pytest.mark.parametrize("kernel", ["v6.12", "v6.17"])
def test_the_event_of_a_page_that_comes_back_from_exclusive_access(kernel):
    mm, vma = space(kernel)
    write(mm)
    pfn = pfn_of(mm.entry(BASE, 1))
    entry = encode_swap(mm.kernel.swp_device_exclusive_write, pfn) | 2
    mm.set_entry(BASE, 1, entry)
    events = heard(mm)
    assert handle_mm_fault(mm, vma, BASE, 0) == 0
    event = MMU_NOTIFY_EXCLUSIVE if kernel == "v6.12" else MMU_NOTIFY_CLEAR
    assert events == [(event, BASE, BASE + 4096)]
    assert mm.entry(BASE, 1) & (P | RW | D) == P | RW | D


@pytest.mark.parametrize(("kernel", "back"), [("v6.18", False), ("v7.0", True)])
def test_a_device_private_pmd_comes_back_as_a_whole_from_v7_0_on(kernel, back):
    mm, vma = space(kernel)
    mm.make_tables(BASE, 2)
    mm.set_entry(BASE, 2, encode_swap(mm.kernel.swp_device_write, 0x80000))
    events = heard(mm)
    ret = handle_mm_fault(mm, vma, BASE + 0x3000, 0)
    assert ret == (0 if back else VM_FAULT_SIGBUS)
    assert events == ([(MMU_NOTIFY_MIGRATE, BASE, BASE + (512 << 12))] if back else [])
    assert mm.entry(BASE, 2) & (P | RW | PSE | A | D) == (P | RW | PSE if back else 0)
