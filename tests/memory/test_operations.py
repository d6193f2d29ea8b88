"""The operations of an address space: entries, events, errnos, and a page state that stays consistent."""

from __future__ import annotations

from errno import EBUSY, EFAULT, EINVAL, ENOENT, ENOMEM

import numpy as np
import pytest

import gpuhmm
from gpuhmm import memory
from gpuhmm.memory import DeviceMemory, File, PhysicalMemory, access, check_invariants, fork, load, store
from gpuhmm.memory.gup import EHWPOISON
from gpuhmm.memory.pages.page import PG_ANON_EXCLUSIVE
from gpuhmm.mm.entry import PSE, RW, A, D, P
from gpuhmm.mm.notifier import (
    MMU_NOTIFY_CLEAR,
    MMU_NOTIFY_EXCLUSIVE,
    MMU_NOTIFY_MIGRATE,
    MMU_NOTIFY_PROTECTION_PAGE,
    MMU_NOTIFY_PROTECTION_VMA,
    MMU_NOTIFY_RELEASE,
    MMU_NOTIFY_UNMAP,
)
from gpuhmm.mm.vma import VM_HUGEPAGE, VM_READ, VM_SHARED, VM_WRITE

BASE = 0x7F00_0000_0000
PAGE = 4096
HUGE = 2 << 20
RW_AREA = VM_READ | VM_WRITE


class Watched:
    """A space, its events in order, and the check of everything after every step."""

    def __init__(self, kernel="v6.1", **limits):
        self.memory = PhysicalMemory(**limits)
        self.mm = gpuhmm.AddressSpace(kernel=kernel, memory=self.memory)
        self.events = []
        self.watch(self.mm)

    def watch(self, mm):
        def note(sub, range_, cur_seq):
            sub.set_seq(cur_seq)
            self.events.append((range_.event, range_.start, range_.end))
            return True

        mm.notifier(0, mm.task_size, note)

    def check(self):
        check_invariants(self.memory)

    def take_events(self):
        events, self.events = self.events, []
        return events


@pytest.fixture
def space():
    watched = Watched()
    yield watched
    watched.check()


def fill(mm, start, npages, first=100):
    for i in range(npages):
        assert store(mm, start + i * PAGE, first + i) == 0


def contents(mm, start, npages):
    return [load(mm, start + i * PAGE) for i in range(npages)]


def test_loads_and_stores(space):
    mm = space.mm
    mm.mmap(BASE, BASE + 4 * PAGE, RW_AREA)
    assert load(mm, BASE) == 0
    assert store(mm, BASE, 7) == 0
    assert space.take_events() == [(MMU_NOTIFY_CLEAR, BASE, BASE + PAGE)]  # the zero page was copied
    assert (load(mm, BASE), load(mm, BASE + PAGE)) == (7, 0)
    assert load(mm, BASE - PAGE) == -EFAULT
    mm.mprotect(BASE, BASE + PAGE, VM_READ)
    assert store(mm, BASE, 8) == -EFAULT
    assert access(mm, BASE + 3 * PAGE, write=True) > 0


def test_munmap_gives_pages_and_tables_back(space):
    mm = space.mm
    mm.mmap(BASE, BASE + 600 * PAGE, RW_AREA)
    fill(mm, BASE, 600)
    used = space.memory.nr_used
    assert used == 600 + 4  # pages, two leaf tables, a PMD and a PUD table
    assert memory.munmap(mm, BASE + 10 * PAGE, BASE + 20 * PAGE) == 0
    assert space.take_events() == [(MMU_NOTIFY_UNMAP, BASE + 10 * PAGE, BASE + 20 * PAGE)]
    space.check()
    assert contents(mm, BASE + 9 * PAGE, 3) == [109, -EFAULT, -EFAULT]
    assert memory.munmap(mm, BASE, BASE + 600 * PAGE) == 0
    assert space.memory.nr_used == 0
    assert memory.munmap(mm, BASE, BASE + PAGE) == 0  # nothing there: nothing to do
    assert memory.munmap(mm, BASE + 1, BASE + PAGE) == -EINVAL


def test_mprotect_errors_and_events(space):
    mm = space.mm
    mm.mmap(BASE, BASE + 4 * PAGE, RW_AREA)
    assert memory.mprotect(mm, BASE, BASE + 8 * PAGE, VM_READ) == -ENOMEM
    assert space.take_events() == []  # nothing was mapped
    assert mm.vmas.lookup(BASE).flags == VM_READ  # what lies before the gap is done
    memory.mprotect(mm, BASE, BASE + 4 * PAGE, RW_AREA)
    fill(mm, BASE, 4)
    space.take_events()
    assert memory.mprotect(mm, BASE, BASE + 2 * PAGE, VM_READ) == 0
    assert space.take_events() == [(MMU_NOTIFY_PROTECTION_VMA, BASE, BASE + 2 * PAGE)]
    assert [bool(mm.entry(BASE + i * PAGE, 1) & RW) for i in range(4)] == [False, False, True, True]
    assert memory.mprotect(mm, BASE, BASE + 2 * PAGE, RW_AREA) == 0
    assert mm.entry(BASE, 1) & RW  # exclusive: writable again at once
    assert memory.mprotect(mm, BASE, BASE, VM_READ) == -EINVAL


@pytest.mark.parametrize("kernel", ["v5.18", "v6.1"])
def test_fork_shares_until_one_writes(kernel):
    space = Watched(kernel)
    mm = space.mm
    mm.mmap(BASE, BASE + 8 * PAGE, RW_AREA)
    fill(mm, BASE, 4)
    space.take_events()
    child = fork(mm)
    assert space.take_events() == [(MMU_NOTIFY_PROTECTION_PAGE, BASE, BASE + 8 * PAGE)]
    space.check()
    assert [child.entry(BASE, 1) & (RW | A), mm.entry(BASE, 1) & RW] == [0, 0]
    assert child.entry(BASE, 1) >> 12 & 0xFF_FFFF == mm.entry(BASE, 1) >> 12 & 0xFF_FFFF
    assert store(mm, BASE, 1) == 0
    assert space.take_events() == [(MMU_NOTIFY_CLEAR, BASE, BASE + PAGE)]
    space.check()
    assert (load(mm, BASE), load(child, BASE)) == (1, 100)
    before = child.entry(BASE, 1)
    assert store(child, BASE, 2) == 0  # alone by now: the page is reused
    assert child.entry(BASE, 1) & ~(A | D | RW | 0x800) == before & ~(A | D | RW | 0x800)
    space.check()
    memory.exit_mmap(child)
    space.check()
    assert contents(mm, BASE, 4) == [1, 101, 102, 103]
    memory.exit_mmap(mm)
    space.check()
    assert space.memory.nr_used == 0


def test_fork_of_a_huge_page_splits_on_the_first_write(space):
    mm = space.mm
    mm.mmap(BASE, BASE + HUGE, RW_AREA | VM_HUGEPAGE)
    assert store(mm, BASE, 5) == 0
    assert mm.entry(BASE, 2) & PSE
    child = fork(mm)
    space.check()
    space.take_events()
    assert store(mm, BASE + PAGE, 6) == 0
    assert space.take_events() == [
        (MMU_NOTIFY_CLEAR, BASE, BASE + HUGE),
        (MMU_NOTIFY_CLEAR, BASE + PAGE, BASE + 2 * PAGE),
    ]
    space.check()
    assert (load(child, BASE), load(child, BASE + PAGE), load(mm, BASE + PAGE)) == (5, 0, 6)
    memory.exit_mmap(child)


def test_exit_tells_release_and_leaves_nothing():
    space = Watched()
    mm = space.mm
    mm.mmap(BASE, BASE + HUGE, RW_AREA | VM_HUGEPAGE)
    mm.mmap(BASE + HUGE, BASE + HUGE + 8 * PAGE, RW_AREA | VM_SHARED)
    fill(mm, BASE, 1)
    fill(mm, BASE + HUGE, 8)
    assert mm.vmas.lookup(BASE + HUGE).file.cached()
    memory.exit_mmap(mm)
    assert [event for event, _, _ in space.take_events()] == [MMU_NOTIFY_RELEASE, MMU_NOTIFY_UNMAP]
    space.check()
    assert space.memory.nr_used == 8  # the page cache of the shared memory


def test_madvise(space):
    mm = space.mm
    mm.mmap(BASE, BASE + 8 * PAGE, RW_AREA)
    fill(mm, BASE, 8)
    space.take_events()
    assert memory.madvise(mm, BASE, BASE + 2 * PAGE, memory.MADV_DONTNEED) == 0
    assert space.take_events() == [(MMU_NOTIFY_CLEAR, BASE, BASE + 2 * PAGE)]
    assert contents(mm, BASE, 3) == [0, 0, 102]
    assert memory.madvise(mm, BASE + 2 * PAGE, BASE + 4 * PAGE, memory.MADV_FREE) == 0
    assert not mm.entry(BASE + 2 * PAGE, 1) & (A | D)
    assert memory.madvise(mm, BASE + 7 * PAGE, BASE + 9 * PAGE, memory.MADV_DONTNEED) == -ENOMEM
    assert mm.entry(BASE + 7 * PAGE, 1) == 0
    assert memory.madvise(mm, BASE, BASE + PAGE, 99) == -EINVAL
    assert memory.madvise(mm, BASE, BASE + 4 * PAGE, memory.MADV_HUGEPAGE) == 0
    assert mm.vmas.lookup(BASE).flags & VM_HUGEPAGE
    assert memory.madvise(mm, BASE, BASE + 8 * PAGE, memory.MADV_PAGEOUT) == 0


def test_madvise_dontneed_of_a_part_splits_a_huge_page(space):
    mm = space.mm
    mm.mmap(BASE, BASE + HUGE, RW_AREA | VM_HUGEPAGE)
    fill(mm, BASE, 3)
    space.take_events()
    assert memory.madvise(mm, BASE + PAGE, BASE + 2 * PAGE, memory.MADV_DONTNEED) == 0
    assert space.take_events() == [
        (MMU_NOTIFY_CLEAR, BASE + PAGE, BASE + 2 * PAGE),
        (MMU_NOTIFY_CLEAR, BASE, BASE + HUGE),
    ]
    assert contents(mm, BASE, 3) == [100, 0, 102]


def test_swap_out_and_in(space):
    mm = space.mm
    mm.mmap(BASE, BASE + 8 * PAGE, RW_AREA)
    fill(mm, BASE, 8)
    space.take_events()
    assert memory.swap_out(mm, BASE, BASE + 8 * PAGE) == 8
    assert space.take_events() == [
        (MMU_NOTIFY_CLEAR, BASE + i * PAGE, BASE + (i + 1) * PAGE) for i in range(8)
    ]
    space.check()
    assert mm.entry(BASE, 1) & 0xF == 0xA  # exclusive and soft-dirty, not present
    child = fork(mm)
    space.check()
    assert mm.entry(BASE, 1) & 0xF == 0x2
    assert contents(child, BASE, 2) == [100, 101]
    space.check()
    assert store(mm, BASE, 9) == 0
    assert (load(child, BASE), load(mm, BASE)) == (100, 9)
    space.check()
    memory.exit_mmap(child)
    space.check()
    assert contents(mm, BASE, 8) == [9, *range(101, 108)]
    assert memory.swap_out(mm, BASE + PAGE, BASE) == -EINVAL


def test_swap_can_be_full():
    space = Watched(swap_slots=3)
    mm = space.mm
    mm.mmap(BASE, BASE + 8 * PAGE, RW_AREA)
    fill(mm, BASE, 8)
    assert memory.swap_out(mm, BASE, BASE + 8 * PAGE) == 3
    space.check()
    assert contents(mm, BASE, 8) == list(range(100, 108))
    space.check()


def test_shared_memory_goes_to_swap_and_comes_back(space):
    mm = space.mm
    mm.mmap(BASE, BASE + 4 * PAGE, RW_AREA | VM_SHARED)
    fill(mm, BASE, 4)
    assert memory.swap_out(mm, BASE, BASE + 4 * PAGE) == 4
    space.check()
    assert [mm.entry(BASE + i * PAGE, 1) for i in range(4)] == [0] * 4
    assert contents(mm, BASE, 4) == list(range(100, 104))


def test_migration_entries_until_the_end(space):
    mm = space.mm
    mm.mmap(BASE, BASE + 4 * PAGE, RW_AREA)
    fill(mm, BASE, 4)
    child = fork(mm)
    before = [mm.entry(BASE + i * PAGE, 1) for i in range(4)]
    space.take_events()
    migration = memory.migrate_pages_start(mm, BASE, BASE + 4 * PAGE)
    assert space.take_events() == [
        (MMU_NOTIFY_CLEAR, BASE + i * PAGE, BASE + (i + 1) * PAGE) for i in range(4)
    ]
    space.check()
    assert not any(mm.entry(BASE + i * PAGE, 1) & P for i in range(4))
    assert not any(child.entry(BASE + i * PAGE, 1) & P for i in range(4))
    assert memory.migrate_pages_end(migration) == 4
    space.check()
    after = [mm.entry(BASE + i * PAGE, 1) for i in range(4)]
    assert all((a ^ b) & 0x8000_0000_0000_0FFF == 0 and a != b for a, b in zip(before, after, strict=True))
    assert contents(child, BASE, 4) == list(range(100, 104))
    with pytest.raises(ValueError, match="ended once"):
        memory.migrate_pages_end(migration)


def test_an_access_waits_for_a_migration_which_ends_whole(space):
    mm = space.mm
    mm.mmap(BASE, BASE + HUGE + 4 * PAGE, RW_AREA | VM_HUGEPAGE)
    fill(mm, BASE + HUGE - PAGE, 3)
    migration = memory.migrate_pages_start(mm, BASE, BASE + HUGE + 4 * PAGE)
    space.check()
    seen = gpuhmm.range_fault(mm, BASE, BASE + HUGE, request="read", backend="reference")
    assert seen.stats.migration_waits == 1
    assert migration.ended
    space.check()
    assert contents(mm, BASE + HUGE - PAGE, 3) == [100, 101, 102]


def test_pinned_pages_do_not_move(space):
    mm = space.mm
    mm.mmap(BASE, BASE + 2 * PAGE, RW_AREA)
    fill(mm, BASE, 2)
    pfns = memory.pin_user_pages(mm, BASE, 1)
    space.check()
    migration = memory.migrate_pages_start(mm, BASE, BASE + 2 * PAGE)
    assert memory.migrate_pages_end(migration) == 1
    assert memory.swap_out(mm, BASE, BASE + 2 * PAGE) == 1
    child = fork(mm)  # copies the pinned page at once
    space.check()
    assert child.entry(BASE, 1) >> 12 & 0xFF_FFFF != int(pfns[0])
    assert load(child, BASE) == 100
    memory.unpin_user_pages(mm, pfns)
    space.check()
    memory.exit_mmap(child)


def test_a_read_pin_unshares_without_granting_the_write(space):
    mm = space.mm
    mm.mmap(BASE, BASE + PAGE, RW_AREA)
    fill(mm, BASE, 1)
    child = fork(mm)
    pfns = memory.pin_user_pages(child, BASE, 1, write=False)
    assert not child.entry(BASE, 1) & RW
    assert space.memory.pages.flags(int(pfns[0])) & PG_ANON_EXCLUSIVE
    memory.unpin_user_pages(child, pfns)
    memory.exit_mmap(child)


def test_numa_hints(space):
    mm = space.mm
    mm.mmap(BASE, BASE + 4 * PAGE, RW_AREA)
    fill(mm, BASE, 2)
    load(mm, BASE + 2 * PAGE)
    space.take_events()
    assert memory.change_prot_numa(mm, BASE, BASE + 4 * PAGE) == 2
    assert space.take_events() == [(MMU_NOTIFY_PROTECTION_VMA, BASE, BASE + 4 * PAGE)]
    assert mm.entry(BASE, 1) & 0x103 == 0x102
    assert contents(mm, BASE, 3) == [100, 101, 0]
    assert space.take_events() == []
    assert mm.entry(BASE, 1) & (P | RW) == P | RW


@pytest.mark.parametrize("kernel", ["v5.18", "v6.1"])
def test_to_a_device_and_back(kernel):
    space = Watched(kernel)
    mm = space.mm
    device = DeviceMemory(space.memory, 0xD0, 64)
    mm.mmap(BASE, BASE + 6 * PAGE, RW_AREA)
    fill(mm, BASE, 4)
    load(mm, BASE + 4 * PAGE)  # the zero page
    space.take_events()
    moved = memory.migrate_to_device(mm, BASE, BASE + 6 * PAGE, device)
    assert moved.all()
    assert device.used == 6
    assert space.take_events() == [(MMU_NOTIFY_MIGRATE, BASE, BASE + 6 * PAGE)]
    space.check()
    own = gpuhmm.range_fault(mm, BASE, BASE + 6 * PAGE, dev_private_owner=0xD0, backend="reference")
    assert own.writable.all()
    stranger = gpuhmm.range_fault(mm, BASE, BASE + 6 * PAGE, backend="reference")
    assert not stranger.valid.any()
    child = fork(mm)
    space.check()
    assert load(child, BASE) == 100  # brings the page back for both
    space.check()
    assert mm.entry(BASE, 1) & P
    memory.exit_mmap(child)
    space.take_events()
    assert contents(mm, BASE, 6) == [100, 101, 102, 103, 0, 0]
    assert {event for event, _, _ in space.take_events()} == {MMU_NOTIFY_MIGRATE}
    assert device.used == 0
    space.check()


def test_what_cannot_go_to_a_device(space):
    mm = space.mm
    device = DeviceMemory(space.memory, 1, 2)
    mm.mmap(BASE, BASE + 4 * PAGE, RW_AREA)
    mm.mmap(BASE + 8 * PAGE, BASE + 9 * PAGE, RW_AREA | VM_SHARED)
    fill(mm, BASE, 4)
    store(mm, BASE + 8 * PAGE, 1)
    assert memory.migrate_to_device(mm, BASE, BASE + 5 * PAGE, device) == -EINVAL
    assert memory.migrate_to_device(mm, BASE + 8 * PAGE, BASE + 9 * PAGE, device).tolist() == [False]
    assert memory.migrate_to_device(mm, BASE, BASE + 4 * PAGE, device).tolist() == [True, True, False, False]
    assert memory.migrate_to_device(mm, BASE, BASE + PAGE, device).tolist() == [False]  # there already
    space.check()
    assert memory.migrate_to_ram(mm, BASE, BASE + 4 * PAGE, device).tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="owner of a device"):
        DeviceMemory(space.memory, 0, 4)


def test_a_huge_page_goes_to_a_device_in_small_pieces(space):
    mm = space.mm
    device = DeviceMemory(space.memory, 1, 1024)
    mm.mmap(BASE, BASE + HUGE, RW_AREA | VM_HUGEPAGE)
    store(mm, BASE + 7 * PAGE, 5)
    assert memory.migrate_to_device(mm, BASE + 7 * PAGE, BASE + 9 * PAGE, device).tolist() == [True, True]
    space.check()
    assert load(mm, BASE + 7 * PAGE) == 5


def test_coherent_device_memory_is_mapped(space):
    mm = space.mm
    device = DeviceMemory(space.memory, 3, 8, coherent=True)
    mm.mmap(BASE, BASE + 2 * PAGE, RW_AREA)
    fill(mm, BASE, 2)
    assert memory.migrate_to_device(mm, BASE, BASE + 2 * PAGE, device).all()
    space.check()
    assert access(mm, BASE) == device.first_pfn
    assert contents(mm, BASE, 2) == [100, 101]
    pfns = memory.pin_user_pages(mm, BASE, 1, longterm=True)
    assert space.memory.device_of(int(pfns[0])) is None
    memory.unpin_user_pages(mm, pfns)


def test_device_exclusive_pages(space):
    mm = space.mm
    mm.mmap(BASE, BASE + 2 * PAGE, RW_AREA)
    fill(mm, BASE, 1)
    space.take_events()
    pfns = memory.make_device_exclusive_range(mm, BASE, BASE + 2 * PAGE, 0xE)
    assert (pfns != np.uint64(0xFFFF_FFFF_FFFF_FFFF)).all()
    assert [event for event, _, _ in space.take_events()] == [MMU_NOTIFY_EXCLUSIVE] * 2
    space.check()
    child = fork(mm)  # takes them back
    assert mm.entry(BASE, 1) & P
    space.check()
    assert load(child, BASE) == 100
    memory.exit_mmap(child)
    memory.make_device_exclusive_range(mm, BASE, BASE + PAGE, 0xE)
    space.take_events()
    assert store(mm, BASE, 3) == 0
    assert (MMU_NOTIFY_EXCLUSIVE, BASE, BASE + PAGE) in space.take_events()
    assert load(mm, BASE) == 3


def test_files_private_and_shared(space):
    mm = space.mm
    file = File(space.memory, 64 * PAGE, "regular")
    mm.mmap(BASE, BASE + 64 * PAGE, RW_AREA | VM_SHARED, file=file)
    mm.mmap(BASE + 100 * PAGE, BASE + 164 * PAGE, RW_AREA, file=file)
    assert load(mm, BASE + 20 * PAGE) == 0
    mapped = [i for i in range(64) if mm.entry(BASE + i * PAGE, 1)]
    assert mapped == [20]  # read from the disk: only the page itself
    assert load(mm, BASE + 21 * PAGE) == 0
    mapped = [i for i in range(64) if mm.entry(BASE + i * PAGE, 1)]
    assert mapped == list(range(16, 32))  # fault-around: 64 KiB of what was read ahead
    space.check()
    assert not mm.entry(BASE + 20 * PAGE, 1) & RW
    assert store(mm, BASE + 20 * PAGE, 5) == 0
    assert load(mm, BASE + 120 * PAGE) == 5
    assert store(mm, BASE + 120 * PAGE, 6) == 0
    assert load(mm, BASE + 20 * PAGE) == 5
    space.check()


def test_beyond_the_end_of_a_file_is_a_bus_error(space):
    mm = space.mm
    file = File(space.memory, 4 * PAGE)
    mm.mmap(BASE, BASE + 8 * PAGE, RW_AREA | VM_SHARED, file=file)
    assert store(mm, BASE + 3 * PAGE, 1) == 0
    assert store(mm, BASE + 4 * PAGE, 1) == -EFAULT
    with pytest.raises(ValueError, match="kind of a file"):
        File(space.memory, 4 * PAGE, "floppy")


def test_huge_shared_memory(space):
    mm = space.mm
    file = File(space.memory, 2 * HUGE, huge=True)
    mm.mmap(BASE, BASE + 2 * HUGE, RW_AREA | VM_SHARED, file=file)
    assert store(mm, BASE + 5 * PAGE, 1) == 0
    assert mm.entry(BASE, 2) & PSE
    space.check()
    child = fork(mm)
    assert load(child, BASE + 5 * PAGE) == 1
    space.check()
    memory.exit_mmap(child)


def test_userfaultfd(space):
    mm = space.mm
    mm.mmap(BASE, BASE + 4 * PAGE, RW_AREA)
    fill(mm, BASE, 2)
    both = memory.UFFDIO_REGISTER_MODE_MISSING | memory.UFFDIO_REGISTER_MODE_WP
    assert memory.userfaultfd_register(mm, BASE, BASE + 8 * PAGE, 8) == -EINVAL
    assert memory.userfaultfd_writeprotect(mm, BASE, BASE + PAGE, True) == -ENOENT
    assert memory.userfaultfd_register(mm, BASE, BASE + 4 * PAGE, both) == 0
    assert store(mm, BASE + 3 * PAGE, 1) == -EFAULT
    space.take_events()
    assert memory.userfaultfd_writeprotect(mm, BASE, BASE + PAGE, True) == 0
    assert space.take_events() == [(MMU_NOTIFY_PROTECTION_VMA, BASE, BASE + PAGE)]
    assert store(mm, BASE, 1) == -EFAULT
    assert memory.userfaultfd_writeprotect(mm, BASE, BASE + PAGE, False) == 0
    assert store(mm, BASE, 1) == 0
    assert memory.userfaultfd_unregister(mm, BASE, BASE + 4 * PAGE) == 0
    assert store(mm, BASE + 3 * PAGE, 1) == 0


def test_hardware_poison(space):
    mm = space.mm
    mm.mmap(BASE, BASE + 4 * PAGE, RW_AREA)
    fill(mm, BASE, 2)
    space.take_events()
    assert memory.madvise(mm, BASE, BASE + PAGE, memory.MADV_HWPOISON) == 0
    assert space.take_events() == [(MMU_NOTIFY_CLEAR, BASE, BASE + PAGE)]
    assert load(mm, BASE) == -EHWPOISON
    assert load(mm, BASE + PAGE) == 101
    load(mm, BASE + 2 * PAGE)
    assert memory.memory_failure(mm, BASE + 2 * PAGE) == -EBUSY


def test_hugetlb_pool_and_copy(space):
    space.memory.hugetlb_left = 3
    mm = space.mm
    mm.mmap(BASE, BASE + 4 * HUGE, RW_AREA, 21)
    assert store(mm, BASE, 1) == 0
    child = fork(mm)
    space.check()
    assert store(child, BASE, 2) == 0
    assert (load(mm, BASE), load(child, BASE)) == (1, 2)
    space.check()
    assert store(mm, BASE + HUGE, 1) == 0
    assert store(mm, BASE + 2 * HUGE, 1) == -EFAULT  # the pool is empty
    memory.exit_mmap(child)
    assert space.memory.hugetlb_left == 1
    assert memory.munmap(mm, BASE + PAGE, BASE + HUGE) == -EINVAL


def test_memory_that_runs_out_leaves_everything_consistent():
    space = Watched(frames=12)
    mm = space.mm
    mm.mmap(BASE, BASE + 64 * PAGE, RW_AREA)
    results = [store(mm, BASE + i * PAGE, i) for i in range(64)]
    assert results == [0] * 9 + [-ENOMEM] * 55
    space.check()
    assert fork(mm) == -ENOMEM
    space.check()
    assert len(space.memory.spaces) == 1
    memory.munmap(mm, BASE, BASE + 4 * PAGE)
    assert store(mm, BASE + 20 * PAGE, 1) == 0
    space.check()
