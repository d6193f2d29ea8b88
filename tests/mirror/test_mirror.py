"""The mirror itself: its page table, range sizes, counters, refusals, and coherence under threads."""

import errno
import math
import random
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selftest_process import BUFFER, PAGE, RW, Process, counting, migrate, read, write
from threads import SECONDS, run

from gpuhmm.memory import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    DeviceMemory,
    PhysicalMemory,
    change_prot_numa,
    check_invariants,
    exit_mmap,
    fork,
    load,
    madvise,
    migrate_pages_end,
    migrate_pages_start,
    mprotect,
    munmap,
    store,
    swap_out,
)
from gpuhmm.mirror import DPT_PFN, DPT_VALID, DPT_WRITE, DeviceMirror, DevicePageTable
from gpuhmm.mm.notifier import MMU_NOTIFY_MIGRATE
from gpuhmm.mm.vma import VM_READ


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    return request.param


@pytest.fixture
def process(backend):
    made = Process("v6.1", backend)
    yield made
    made.check()


# -- the device page table --------------------------------------------------------------------

RANGES = st.tuples(st.integers(0, 3 * 512), st.integers(1, 700))
STEPS = st.lists(st.tuples(st.sampled_from(["store", "erase", "erase own"]), RANGES), max_size=12)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(STEPS, RANGES)
def test_the_device_page_table_is_a_map_from_pages_to_entries(steps, asked):
    table, expected = DevicePageTable(), {}
    for number, (step, (page, npages)) in enumerate(steps):
        start, end = page * PAGE, (page + npages) * PAGE
        if step == "store":
            entries = counting(npages, 1000 * number + 1) | DPT_VALID
            table.store(start, entries)
            expected.update(zip(range(page, page + npages), entries.tolist(), strict=True))
            continue
        own = range(500, 1500) if step == "erase own" else None
        gone = [
            p
            for p in range(page, page + npages)
            if p in expected and (own is None or (expected[p] & int(DPT_PFN)) in own)
        ]
        for p in gone:
            del expected[p]
        assert table.erase(start, end, own) == len(gone)
    assert len(table) == len(expected)
    page, npages = asked
    loaded = table.load(page * PAGE, (page + npages) * PAGE).tolist()
    assert loaded == [expected.get(p, 0) for p in range(page, page + npages)]
    assert table.erase(0, 1 << 57) == len(expected)
    assert len(table) == 0


# -- one thread -------------------------------------------------------------------------------


@pytest.mark.parametrize("range_pages", [1, 64, 100, 512, 5000])
def test_any_range_size(process, range_pages):
    at = process.mmap(1024)
    mirror = process.mirror_of(process.mm, range_pages=range_pages)
    write(process, at, counting(1024), mirror)
    counters = mirror.counters
    assert (counters.calls, counters.faults, counters.retries) == (-(-1024 // range_pages), 1024, 0)
    assert counters.pages == 1024
    result = mirror.read(at, at + 1024 * PAGE)
    assert (result.ret, result.faults) == (0, 0)  # all there
    np.testing.assert_array_equal(result.data, counting(1024))


def test_an_invalidation_takes_away_what_it_covers_and_no_more(process):
    at = process.mmap(256)
    write(process, at, counting(256))
    mirror = process.mirrors[0]
    assert madvise(process.mm, at + 10 * PAGE, at + 20 * PAGE, MADV_DONTNEED) == 0
    assert len(mirror.page_table) == 246
    assert (mirror.counters.invalidations, mirror.counters.invalidated_pages) == (1, 10)
    result = mirror.read(at, at + 256 * PAGE)
    # Copied up to the hole, asked for the rest, and then read on.
    assert (result.ret, result.cpages, result.faults) == (0, 256, 1)
    assert result.data[:22].tolist() == [*range(10), *[0] * 10, 20, 21]


def test_a_page_that_the_device_may_only_read_faults_when_it_writes(process):
    at = process.mmap(4)
    read(process, at, 4)
    assert not (process.mirrors[0].page_table.load(at, at + 4 * PAGE) & DPT_WRITE).any()
    write(process, at, counting(4))
    assert process.words(at, 4).tolist() == [0, 1, 2, 3]


def test_a_write_asks_in_vain_for_an_own_page_that_is_read_only(process):
    """hmm_range_fault() reports own device memory as it is, and never makes it writable."""
    at = process.mmap(4)
    process.fill(at, counting(4))
    process.mprotect(at, 4, VM_READ)
    migrate(process, at, 4)
    process.mprotect(at, 4, RW)
    process.mirrors[0].close()
    mirror = process.mirrors[0] = process.mirror_of(process.mm)
    result = mirror.write(at, counting(4))
    assert (result.ret, len(mirror.page_table)) == (-errno.EFAULT, 0)


def test_migrating_back_takes_the_device_pages_only(process):
    at = process.mmap(8)
    process.fill(at, counting(8))
    migrate(process, at + 2 * PAGE, 4)
    mirror = process.mirrors[0]
    result = mirror.read(at, at + 8 * PAGE)
    assert (result.ret, len(mirror.page_table)) == (0, 8)
    result = mirror.migrate_to_system(at, at + 8 * PAGE)
    assert (result.ret, result.cpages) == (0, 4)
    assert len(mirror.page_table) == 4  # those of the system stay mapped
    assert process.words(at, 8).tolist() == list(range(8))


def test_migrating_again_keeps_what_was_there(process):
    at = process.mmap(8)
    process.fill(at, counting(8))
    migrate(process, at, 4)
    before = process.mirrors[0].page_table.load(at, at + 4 * PAGE).tolist()
    assert migrate(process, at, 8).tolist() == list(range(8))
    assert process.mirrors[0].page_table.load(at, at + 4 * PAGE).tolist() == before


def test_exclusive_pages_stay_exclusive_when_their_neighbours_move(process):
    at = process.mmap(4)
    process.fill(at, counting(4))
    mirror = process.mirrors[0]
    assert mirror.make_exclusive(at, at + 2 * PAGE).ret == 0
    assert migrate(process, at, 4).tolist() == [0, 1, 2, 3]
    assert mirror.check_exclusive(at, at + 2 * PAGE) == -errno.EPERM
    assert mirror.check_exclusive(at + 2 * PAGE, at + 4 * PAGE) == 0
    entries = mirror.page_table.load(at, at + 4 * PAGE)
    assert (entries[:2] & DPT_WRITE).tolist() == [0, 0]
    assert (entries[2:] & DPT_WRITE).all()


def test_a_device_whose_memory_runs_out(process):
    small = DeviceMemory(process.memory, owner=0xE00, npages=100)
    mirror = DeviceMirror(process.mm, small, backend=process.backend)
    at = process.mmap(256)
    process.fill(at, counting(256))
    result = mirror.migrate_to_device(at, at + 256 * PAGE)
    assert (result.ret, result.cpages, len(mirror.page_table)) == (-errno.ENOENT, 100, 100)
    assert mirror.release_device() == 100
    assert (small.used, len(mirror.page_table)) == (0, 0)
    np.testing.assert_array_equal(process.words(at, 256), counting(256))
    assert mirror.migrate_to_device(at + 156 * PAGE, at + 256 * PAGE).cpages == 100


class Invalidating:
    """Maps a page and takes it away again for as often as it is told, after a while each time."""

    def __init__(self, times, seconds):
        self.times = times
        self.seconds = seconds

    def handle_mm_fault(self, mm, vma, va, flags):
        time.sleep(self.seconds)
        self.times -= 1
        with mm.subscriptions.invalidate_range(va, va + PAGE):
            mm.make_tables(va, 1)
            mm.set_entry(va, 1, 0x5067)
            if self.times >= 0:
                mm.set_entry(va, 1, 0)
        return 0

    def migration_entry_wait(self, mm, va, level):
        raise AssertionError("no migration here")


def test_a_range_that_never_settles_times_out(backend):
    made = Process("v6.1", backend)
    made.mm.faults = Invalidating(times=math.inf, seconds=0)
    at = made.mmap(1)
    mirror = made.mirror_of(made.mm, timeout_ms=20)
    began = time.monotonic()
    assert mirror.read(at, at + PAGE).ret == -errno.EBUSY
    assert time.monotonic() - began >= 0.02
    assert mirror.counters.retries == mirror.counters.calls > 1


def test_a_first_walk_longer_than_the_timeout_is_tried_again(backend):
    made = Process("v6.1", backend)
    made.mm.faults = Invalidating(times=0, seconds=0.03)  # mapped at once, but the sequence is stale
    at = made.mmap(1)
    mirror = made.mirror_of(made.mm, timeout_ms=1)
    assert mirror.read(at, at + PAGE).ret == 0
    assert (mirror.counters.calls, mirror.counters.retries) == (2, 1)


def test_a_busy_driver_refuses_what_may_not_block(process):
    at = process.mmap(1)
    write(process, at, counting(1))
    mirror = process.mirrors[0]
    inside = process.mm.subscriptions.invalidate_range(at, at + PAGE, blockable=False)
    with mirror._table.mutex, pytest.raises(BlockingIOError), inside:
        pytest.fail("the change must not happen")
    assert len(mirror.page_table) == 1
    with inside:
        assert len(mirror.page_table) == 0


def test_what_cannot_be_asked(process):
    mirror = process.mirrors[0]
    at = process.mmap(2)
    for start, end in ((at, at), (at + PAGE, at), (at + 1, at + PAGE), (at, at + 100)):
        assert mirror.read(start, end).ret == -errno.EINVAL
        assert mirror.snapshot(start, end).ret == -errno.EINVAL
        assert mirror.migrate_to_device(start, end).ret == -errno.EINVAL
        assert mirror.migrate_to_system(start, end).ret == -errno.EINVAL
        assert mirror.make_exclusive(start, end).ret == -errno.EINVAL
        assert mirror.check_exclusive(start, end) == -errno.EINVAL
    assert mirror.write(at, counting(0)).ret == -errno.EINVAL
    assert mirror.write(at + 8, counting(1)).ret == -errno.EINVAL
    with pytest.raises(ValueError, match="uint64"):
        mirror.write(at, np.zeros(1))
    # outside of any area
    outside = BUFFER - 16 * PAGE
    assert mirror.read(outside, outside + PAGE).ret == -errno.EFAULT
    assert mirror.migrate_to_device(outside, outside + PAGE).ret == -errno.EINVAL
    assert mirror.migrate_to_system(outside, outside + PAGE).ret == -errno.EINVAL
    assert mirror.make_exclusive(outside, outside + PAGE).ret == -errno.EBUSY
    assert mirror.snapshot(outside, outside + PAGE).data.tolist() == [0xFF]


def test_misuse(process):
    with pytest.raises(ValueError, match="range_pages must be positive"):
        process.mirror_of(process.mm, range_pages=0)
    with pytest.raises(ValueError, match="timeout_ms must be positive"):
        process.mirror_of(process.mm, timeout_ms=0)
    stranger = DeviceMemory(PhysicalMemory(), owner=1, npages=16)
    with pytest.raises(ValueError, match="of the machine"):
        DeviceMirror(process.mm, stranger, backend="reference")
    mirror = process.mirror_of(process.mm)
    mirror.close()
    for use in (mirror.close, lambda: mirror.read(BUFFER, BUFFER + PAGE)):
        with pytest.raises(RuntimeError, match="after it was closed"):
            use()


def test_a_process_that_ends_takes_everything_from_its_devices(backend):
    process = Process("v6.1", backend)
    at = process.mmap(128)
    for mirror in process.mirrors:
        assert mirror.write(at, counting(128)).ret == 0
    migrate(process, at, 64)
    exit_mmap(process.mm)
    for mirror, device in zip(process.mirrors, process.devices, strict=True):
        assert (len(mirror.page_table), device.used) == (0, 0)
        assert mirror.read(at, at + PAGE).ret == -errno.EFAULT
        mirror.close()


def test_mirrors_that_are_closed_hear_nothing(process):
    at = process.mmap(1)
    write(process, at, counting(1))
    mirror = process.mirrors.pop(0)
    mirror.close()
    process.munmap(at, 1)
    assert (len(mirror.page_table), mirror.counters.invalidations) == (0, 0)


# -- many threads -----------------------------------------------------------------------------

STRESS_PAGES = 1024


class LateLock:
    """A lock that commands take late, so that more comes between a walk and the use of it."""

    def __init__(self):
        self.lock = threading.Lock()
        self.acquire, self.release = self.lock.acquire, self.lock.release  # what callbacks use

    def __enter__(self):
        time.sleep(random.choice((0, 0, 2e-4, 2e-3)))
        self.lock.acquire()

    def __exit__(self, *error):
        self.lock.release()


def grants(mm, va):
    """Return (PFN, writable) of what the page table lets a device reach at ``va``, None for nothing."""
    kernel = mm.kernel
    pmd = mm.entry(va, 2)
    if pmd & 0x81 == 0x81:
        return (pmd >> 12 & ((1 << 40) - 1)) + (va >> 12 & 511), bool(pmd & 2)
    pte = mm.entry(va, 1)
    if pte & 1:
        return pte >> 12 & ((1 << 40) - 1), bool(pte & 2)
    if pte and pte >> 59 in (kernel.swp_device_write, kernel.swp_device_read):
        return (~pte << 5 & ((1 << 64) - 1)) >> 14 & ((1 << 34) - 1), pte >> 59 == kernel.swp_device_write
    return None


def test_the_device_never_reaches_more_than_the_page_table_grants(backend):
    process = Process("v6.1", backend)
    mm, end = process.mm, BUFFER + STRESS_PAGES * PAGE
    process.mmap(STRESS_PAGES)
    for mirror in process.mirrors:
        mirror._table.mutex = LateLock()

    def some(rng, most=64):
        start = BUFFER + rng.randrange(STRESS_PAGES) * PAGE
        return start, min(start + rng.randint(1, most) * PAGE, end)

    def device(mirror):
        commands = (
            lambda rng, start, end: mirror.read(start, end).ret,
            lambda rng, start, end: mirror.write(start, counting((end - start) >> 12, rng.randrange(99))).ret,
            lambda rng, start, end: mirror.snapshot(start, end).ret,
            lambda rng, start, end: mirror.migrate_to_device(start, end).ret,
            lambda rng, start, end: mirror.migrate_to_system(start, end).ret,
            lambda rng, start, end: mirror.make_exclusive(start, end).ret,
        )

        def step(rng, counts):
            command = rng.choice(commands)
            counts["device", command(rng, *some(rng))] += 1
            with mirror._table.mutex:
                for va in range(*some(rng), PAGE):
                    entry = int(mirror.page_table.load(va, va + PAGE)[0])
                    if not entry:
                        continue
                    counts["checked"] += 1
                    if entry >> 61 & 1:
                        continue  # exclusive: the CPU page table names it in another way
                    pfn, writable = grants(mm, va) or (None, False)
                    assert entry & int(DPT_PFN) == pfn, (
                        f"{entry:#x} at {va:#x}: {mm.entry(va, 2):#x} {mm.entry(va, 1):#x}"
                    )
                    assert writable or not entry & int(DPT_WRITE)

        return step

    def remap(rng, start, end):
        with mm.mmap_lock.write():
            assert munmap(mm, start, end) == 0
            mm.mmap(start, end, RW)

    def child(rng, start, end):
        forked = fork(mm)
        store(forked, start, 7)
        exit_mmap(forked)

    def migrate_between_nodes(rng, start, end):
        migration = migrate_pages_start(mm, start, end)
        time.sleep(0)
        with mm.mmap_lock.write():
            if not migration.ended:  # by a walk that had to wait for it
                migrate_pages_end(migration)

    def advice(rng, start, end):
        advice = rng.choice((MADV_DONTNEED, MADV_FREE, MADV_PAGEOUT))
        assert madvise(mm, start, end, advice) == 0

    def huge_or_not(rng, start, end):
        start = start & -(2 << 20)
        assert madvise(mm, start, start + (2 << 20), rng.choice((MADV_HUGEPAGE, MADV_NOHUGEPAGE))) == 0
        assert madvise(mm, start, start + (2 << 20), MADV_DONTNEED) == 0

    changes = (
        lambda rng, start, end: store(mm, start, 5),
        lambda rng, start, end: load(mm, start),
        lambda rng, start, end: mprotect(mm, start, end, rng.choice((VM_READ, RW, RW))),
        lambda rng, start, end: swap_out(mm, start, end),
        lambda rng, start, end: change_prot_numa(mm, start, end),
        advice,
        huge_or_not,
        migrate_between_nodes,
        remap,
        child,
    )

    def cpu(rng, counts):
        rng.choice(changes)(rng, *some(rng))
        counts["changes"] += 1
        time.sleep(rng.choice((0, 1e-4, 1e-3)))

    counts = run([device(mirror) for mirror in process.mirrors] * 2 + [cpu] * 4, SECONDS / 6)
    assert counts["checked"] > 5
    assert counts["changes"] > 5
    assert counts["device", 0] > 5
    known = {0, -errno.EFAULT, -errno.EPERM, -errno.ENOENT, -errno.EBUSY, -errno.EINVAL}
    assert {key[1] for key in counts if isinstance(key, tuple)} <= known
    check_invariants(process.memory)


def test_a_walk_that_another_threads_migration_crosses_is_done_again(process, monkeypatch):
    """Own migrations leave the notifier's sequence alone: only the count of moves tells of them."""
    at = process.mmap(1)
    process.fill(at, counting(1, 9))
    migrate(process, at, 1)
    mirror = process.mirrors[0]
    mirror._table.entries.erase(at, at + PAGE)
    real = mirror._table.notifier.read_retry
    crossed = []

    def after_the_walk(seq):
        if not crossed:
            mirror._table.mutex.release()  # the moment before the driver takes its lock
            thread = threading.Thread(target=lambda: crossed.append(load(process.mm, at)))
            thread.start()
            thread.join()
            mirror._table.mutex.acquire()
        return real(seq)

    monkeypatch.setattr(mirror._table.notifier, "read_retry", after_the_walk)
    assert mirror.read(at, at + PAGE).data.tolist() == [9]
    assert (crossed, mirror.counters.calls, mirror.counters.retries) == ([9], 2, 1)
    assert int(mirror.page_table.load(at, at + PAGE)[0]) & int(DPT_PFN) == grants(process.mm, at)[0]


def test_the_events_of_own_migrations_carry_the_owner(process):
    seen = []
    process.mm.notifier(
        BUFFER, BUFFER + PAGE, lambda n, r, seq: seen.append((r.event, r.owner)) or not n.set_seq(seq)
    )
    at = process.mmap(1)
    process.fill(at, counting(1))
    migrate(process, at, 1)
    owner = process.devices[0].owner
    assert (MMU_NOTIFY_MIGRATE, owner) in seen
    seen.clear()
    assert load(process.mm, at) == 0
    assert (MMU_NOTIFY_MIGRATE, owner) in seen
