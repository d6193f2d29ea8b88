"""Walkers and invalidators on one space: an accepted walk is what the page table says at that moment."""

import threading
import time
from collections import Counter
from itertools import count

import numpy as np
import pytest
from spaces import BASE, RW
from threads import SECONDS, STUCK, run

import gpuhmm
from gpuhmm.memory import (
    PhysicalMemory,
    check_invariants,
    load,
    migrate_pages_end,
    migrate_pages_start,
    munmap,
    store,
)
from gpuhmm.mm.mmap_lock import MmapLock
from gpuhmm.mm.notifier import MMU_NOTIFY_PROTECTION_VMA, MMU_NOTIFY_UNMAP
from gpuhmm.mm.tables import NO_CHILD
from gpuhmm.mm.vma import VM_READ

SLOTS = 16  # of 2 MiB
NPAGES = SLOTS * 512
END = BASE + NPAGES * 4096
BACKENDS = ("reference", "cpu")

VALID, WRITE, ERROR = (int(gpuhmm.HMM_PFN_VALID), int(gpuhmm.HMM_PFN_WRITE), int(gpuhmm.HMM_PFN_ERROR))
FAULT = VALID
HUGE = 0x80  # PSE


def page_table_words(mm, start, end):
    """Return the words of a snapshot, read from the entries one 2 MiB slot at a time, without a lock."""
    words = np.zeros((end - start) >> 12, dtype=np.uint64)
    va = start
    while va < end:
        past = min((va | 0x1F_FFFF) + 1, end)
        row = mm.page_tables.row(va, 1)
        here = slice((va - start) >> 12, (past - start) >> 12)
        first = va >> 12 & 511
        if row == NO_CHILD:
            pmd = mm.entry(va, 2)
            if pmd & 1:
                pfn = (pmd >> 12 & ((1 << 40) - 1)) + first
                flags = VALID | 9 << 56 | (WRITE if pmd & 2 else 0)
                words[here] = np.arange(pfn, pfn + ((past - va) >> 12), dtype=np.uint64) | np.uint64(flags)
        else:
            ptes = mm.page_tables.leaf[row, first : first + ((past - va) >> 12)].copy()
            pfns = (ptes >> np.uint64(12)) & np.uint64((1 << 40) - 1)
            seen = pfns | np.uint64(VALID) | np.where(ptes & np.uint64(2), np.uint64(WRITE), np.uint64(0))
            words[here] = np.where(ptes & np.uint64(1), seen, np.uint64(0))
        va = past
    readable = np.zeros(len(words), dtype=bool)
    for vma in list(mm.vmas):
        if vma.start < end and start < vma.end and vma.flags & VM_READ:
            readable[max(vma.start - start, 0) >> 12 : (min(vma.end, end) - start) >> 12] = True
    words[~readable] = ERROR
    return words


class Walker:
    """A driver with a lock, a notifier over a part of the space, and the loop of the documentation."""

    def __init__(self, mm, start, end, default_flags=0):
        self.mm = mm
        self.start, self.end = start, end
        self.default_flags = default_flags
        self.lock = threading.Lock()
        self.notifier = mm.notifier(start, end, self.invalidate)

    def invalidate(self, notifier, range_, cur_seq):
        with self.lock:
            notifier.set_seq(cur_seq)
        return True

    def walk(self, rng, counts):
        """One try: count how it ended, and compare an accepted one with the page table."""
        npages = rng.choice((1, 7, 64, 512, (self.end - self.start) >> 12))
        start = self.start + rng.randrange(((self.end - self.start) >> 12) - npages + 1) * 4096
        words = np.zeros(npages, dtype=np.uint64)
        # the reference takes 5 us a page: large ranges are for the batch walk
        backend = "cpu" if npages > 64 else rng.choice(BACKENDS)
        seq = self.notifier.read_begin()
        range_ = gpuhmm.HmmRange(
            self.notifier,
            start,
            start + npages * 4096,
            words,
            notifier_seq=seq,
            default_flags=self.default_flags,
        )
        ret = gpuhmm.hmm_range_fault(range_, backend=backend)
        with self.lock:
            if ret == -16 or self.notifier.read_retry(seq):
                counts["rejected"] += 1
                return
            counts["accepted", ret] += 1
            if ret == 0:
                self.check(words, page_table_words(self.mm, start, start + npages * 4096))

    def check(self, words, now):
        np.testing.assert_array_equal(words, now)


class FaultingWalker(Walker):
    """Others may add to the page table without a word: what was reported must still be there."""

    def check(self, words, now):
        assert (words & np.uint64(VALID)).all()
        np.testing.assert_array_equal(words & ~np.uint64(WRITE), now & ~np.uint64(WRITE))
        assert not (words & ~now & np.uint64(WRITE)).any()


def some_pages(rng, most=96):
    """Return a random range of pages."""
    start = BASE + rng.randrange(NPAGES) * 4096
    return start, min(start + rng.randint(1, most) * 4096, END)


def table_of(va):
    """Return the PMD entry of the one leaf table that a slot ever has: tables are not given back here."""
    return (0x7000_0000 + (va >> 21 & 511)) << 12 | 0x67


FRESH = count(1 << 20)  # runs of 512 frames that no page had before


def new_pfns(start, end):
    first = next(FRESH) << 9
    return np.arange(first, first + ((end - start) >> 12), dtype=np.uint64)


# -- changes that are told ---------------------------------------------------------------------


def replace_pages(mm, rng):
    start, end = some_pages(rng)
    end = min(end, (start | 0x1F_FFFF) + 1)
    with mm.mmap_lock.write(), mm.subscriptions.invalidate_range(start, end):
        if mm.entry(start, 2) & HUGE:
            return
        mm.set_entry(start, 2, table_of(start))
        mm.map_pfns(start, new_pfns(start, end), flags=rng.choice((0x25, 0x67)))


def zap_pages(mm, rng):
    """The invalidation outside, the lock inside: other threads walk between its start and the change."""
    start, _ = some_pages(rng)
    with mm.subscriptions.invalidate_range(start, start + 4096):
        time.sleep(0)
        with mm.mmap_lock.write():
            if mm.page_tables.row(start, 1) != NO_CHILD:
                mm.set_entry(start, 1, 0)


def collapse_or_split(mm, rng):
    start = BASE + rng.randrange(SLOTS) * (2 << 20)
    with mm.mmap_lock.write(), mm.subscriptions.invalidate_range(start, start + (2 << 20)):
        if mm.entry(start, 2) & HUGE or rng.random() < 0.5:
            mm.set_entry(start, 2, table_of(start))
        else:
            mm.set_entry(start, 2, next(FRESH) << 21 | 0xE7)


def unmap_and_map(mm, rng):
    start, end = some_pages(rng, most=512)
    start, end = start & -(2 << 20), (end + (2 << 20) - 1) & -(2 << 20)  # whole huge pages
    with mm.subscriptions.invalidate_range(start, end, event=MMU_NOTIFY_UNMAP), mm.mmap_lock.write():
        mm.munmap(start, end)
        mm.mmap(start, end, RW)


def protect(mm, rng):
    start, end = some_pages(rng, most=512)
    start, end = start & -(2 << 20), (end + (2 << 20) - 1) & -(2 << 20)
    with mm.subscriptions.invalidate_range(start, end, event=MMU_NOTIFY_PROTECTION_VMA):
        mm.mprotect(start, end, rng.choice((VM_READ, RW, RW)))


def invalidator(mm, *changes):
    def step(rng, counts):
        rng.choice(changes)(mm, rng)
        counts["changes"] += 1
        time.sleep(rng.choice((0, 0, 1e-4, 2e-3)))  # or the sequence would stay odd for ever

    return step


def test_snapshots_equal_the_page_table():
    mm = gpuhmm.AddressSpace()
    mm.mmap(BASE, END, RW)
    mm.map_pfns(BASE, np.arange(1, NPAGES + 1, dtype=np.uint64))
    walkers = [Walker(mm, BASE, END) for _ in range(2)]
    walkers += [Walker(mm, BASE, BASE + (4 << 20)), Walker(mm, END - (4 << 20), END)]
    changes = (replace_pages, replace_pages, zap_pages, zap_pages, collapse_or_split, unmap_and_map, protect)
    counts = run([walker.walk for walker in walkers] + [invalidator(mm, *changes)] * 4, SECONDS / 3)
    assert counts["accepted", 0] > 5
    assert counts["rejected"]
    assert counts["changes"] > 20
    assert {key for key in counts if isinstance(key, tuple)} == {("accepted", 0)}
    assert mm.subscriptions.active_invalidate_ranges == 0
    assert not mm.subscriptions.is_invalidating


@pytest.mark.parametrize("request_", [FAULT, FAULT | WRITE], ids=["read", "write"])
def test_what_was_faulted_in_is_there(request_):
    mm = gpuhmm.AddressSpace()
    mm.mmap(BASE, END, RW)
    quarter = (END - BASE) // 4
    walkers = [FaultingWalker(mm, BASE, END, request_), FaultingWalker(mm, BASE, END, request_)]
    walkers += [FaultingWalker(mm, BASE + i * quarter, BASE + (i + 1) * quarter, request_) for i in (0, 3)]
    changes = (zap_pages, zap_pages, unmap_and_map, protect)
    counts = run([walker.walk for walker in walkers] + [invalidator(mm, *changes)] * 4, SECONDS / 3)
    assert counts["accepted", 0] > 5
    assert counts["rejected"]
    assert counts["changes"] > 20
    # -EPERM: write access was asked for where mprotect had taken it away
    assert {key[1] for key in counts if isinstance(key, tuple)} <= {0, -1}


# -- the lock ---------------------------------------------------------------------------------


def test_many_read_or_one_writes():
    lock = MmapLock()
    inside = Counter()
    value = [0, 0]

    def reader(rng, counts):
        with lock.read():
            assert not inside["writing"]
            assert value[0] == value[1]
            time.sleep(0)
            with lock.read():
                assert lock.held
        if rng.random() < 0.2:
            with lock.read():
                seen = value[0]
                with lock.write() as undisturbed:
                    assert not undisturbed or value[0] == seen
                    value[0] += 1
                    time.sleep(0)
                    value[1] += 1
                    seen = value[0]
                assert value == [seen, seen]  # back to reading without a gap
                counts["upgrades"] += 1

    def writer(rng, counts):
        with lock.write() as undisturbed:
            assert undisturbed
            inside["writing"] += 1
            assert inside["writing"] == 1
            value[0] += 1
            time.sleep(0)
            with lock.write(), lock.read():
                value[1] += 1
            inside["writing"] -= 1
        counts["writes"] += 1

    counts = run([reader] * 5 + [writer] * 3, 0.5)
    assert counts["writes"] > 5
    assert counts["upgrades"] > 5
    assert value[0] == value[1]
    assert not lock.held


def test_released_lets_a_writer_in():
    lock = MmapLock()
    written = threading.Event()

    def write():
        with lock.write():
            written.set()

    with lock.read():
        thread = threading.Thread(target=write)
        thread.start()
        assert not written.wait(0.05)
        with lock.released():
            assert written.wait(STUCK)
            assert not lock.held
        assert lock.held
    thread.join(STUCK)
    with lock.write(), lock.released():
        assert lock.held  # who writes goes on writing


def test_a_walk_that_faults_lets_others_change_the_space_first():
    """Two walkers stop at the same hole at once: both give way, one faults, the other finds it done."""

    class Meeting:
        barrier = threading.Barrier(2, timeout=STUCK)

        def handle_mm_fault(self, mm, vma, va, flags):
            assert mm.mmap_lock.held
            mm.make_tables(va, 1)
            if not mm.entry(va, 1):
                served.append(va)
                mm.set_entry(va, 1, 0x1234067)
            return 0

        def migration_entry_wait(self, mm, va, level):
            self.barrier.wait()  # nobody holds the lock while waiting
            mm.set_entry(va, level, 0)

    served = []
    mm = gpuhmm.AddressSpace(faults=Meeting())
    mm.mmap(BASE, BASE + 4096, RW)
    mm.make_tables(BASE, 1)
    migration_write = mm.kernel.swp_migration_write << 59 | 0x1FF_FFFF_FFFF_FE00
    for backend in BACKENDS:
        served.clear()
        mm.set_entry(BASE, 1, migration_write)
        notifiers = [mm.notifier(BASE, BASE + 4096) for _ in range(2)]
        results = []

        def walk(notifier, backend=backend, results=results):
            words = np.zeros(1, dtype=np.uint64)
            range_ = gpuhmm.HmmRange(
                notifier, BASE, BASE + 4096, words, notifier_seq=notifier.read_begin(), default_flags=FAULT
            )
            results.append((gpuhmm.hmm_range_fault(range_, backend=backend), int(words[0])))

        threads = [threading.Thread(target=walk, args=(notifier,)) for notifier in notifiers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(STUCK)
        assert results == [(0, 0x1234 | VALID | WRITE)] * 2
        assert served in ([BASE], [BASE, BASE])  # the second may have cleared it again after its wait


# -- migrations that other threads cross ------------------------------------------------------


def migrating(kernel="v6.1"):
    """Return a space with one page under migration, and the migration."""
    mm = gpuhmm.AddressSpace(kernel=kernel, memory=PhysicalMemory())
    mm.mmap(BASE, BASE + 4096, RW)
    assert store(mm, BASE, 7) == 0
    return mm, migrate_pages_start(mm, BASE, BASE + 4096)


def test_a_wait_finds_that_another_thread_has_ended_the_migration():
    mm, migration = migrating()
    assert migrate_pages_end(migration) == 1
    entry = mm.entry(BASE, 1)
    assert entry & 1
    mm.faults.migration_entry_wait(mm, BASE, 1)  # what a walk does that saw the migration entry before
    assert mm.entry(BASE, 1) == entry
    check_invariants(mm.memory)
    assert munmap(mm, BASE, BASE + 4096) == 0
    mm.faults.migration_entry_wait(mm, BASE, 1)
    check_invariants(mm.memory)


def test_a_migration_leaves_alone_what_another_has_begun_since():
    mm, first = migrating()
    assert munmap(mm, BASE, BASE + 4096) == 0
    mm.mmap(BASE, BASE + 4096, RW)
    assert store(mm, BASE, 8) == 0
    second = migrate_pages_start(mm, BASE, BASE + 4096)
    assert migrate_pages_end(first) == 0
    assert not mm.entry(BASE, 1) & 1
    assert migrate_pages_end(second) == 1
    assert load(mm, BASE) == 8
    check_invariants(mm.memory)
