"""Address spaces: raw entries, growing tables, and building from nothing."""

import numpy as np
import pytest
from spaces import BASE, RW, anonymous, ask, words

import gpuhmm
from gpuhmm.mm.vma import VM_EXEC, VM_READ, VM_SHARED, VM_WRITE

FAULT = int(gpuhmm.HMM_PFN_REQ_FAULT)
VALID, WRITE = int(gpuhmm.HMM_PFN_VALID), int(gpuhmm.HMM_PFN_WRITE)


@pytest.mark.parametrize("levels", [4, 5])
def test_entries_come_back_as_they_were_stored(levels):
    mm = gpuhmm.AddressSpace(levels=levels)
    va = 0x1234_5678_9000
    for level in range(levels, 1, -1):
        assert mm.entry(va, level) == 0
        mm.set_entry(va, level, (0x100 + level) << 12 | 0x67)
        assert mm.entry(va, level) == (0x100 + level) << 12 | 0x67
    mm.set_entry(va, 1, 0xFFFF_FFFF_FFFF_FFFF)
    assert mm.entry(va, 1) == 0xFFFF_FFFF_FFFF_FFFF
    pfns, pages = mm.tables()
    assert sorted(pfns.tolist()) == sorted([1, *(0x100 + level for level in range(2, levels + 1))])
    leaf = pages[pfns.tolist().index(0x102)]
    assert leaf[va >> 12 & 511] == 0xFFFF_FFFF_FFFF_FFFF
    assert np.count_nonzero(leaf) == 1


def test_a_table_that_is_pointed_to_again_keeps_its_content():
    mm = anonymous(1)
    mm.map_pfns(BASE, words(7))
    table = mm.entry(BASE, 2)
    mm.set_entry(BASE, 2, 0)
    assert mm.entry(BASE, 1) == 0
    mm.set_entry(BASE, 2, table)
    assert mm.entry(BASE, 1) >> 12 & 0xFF_FFFF_FFFF == 7


def test_set_entry_needs_the_table_above():
    mm = gpuhmm.AddressSpace()
    with pytest.raises(ValueError, match="no table of level 1 covers va 0x5000"):
        mm.set_entry(0x5000, 1, 1)


def test_tables_survive_a_round_trip_in_any_order():
    mm = anonymous(2000)
    mm.map_pfns(BASE, np.arange(100, 2100, dtype=np.uint64))
    pfns, pages = mm.tables()
    order = np.random.default_rng(1).permutation(len(pfns))
    again = gpuhmm.AddressSpace.from_tables(
        levels=4,
        root_pfn=mm.root_pfn,
        table_pfns=pfns[order].copy(),
        tables=pages[order].copy(),
        vmas=list(mm.vmas),
    )
    ret, range_ = ask(again, BASE, 2000, "reference")
    assert ret == 0
    assert (range_.hmm_pfns == (np.arange(100, 2100, dtype=np.uint64) | np.uint64(VALID | WRITE))).all()


def test_unreached_tables_are_kept():
    pfns, pages = words(5, 99), np.zeros((2, 512), dtype=np.uint64)
    pages[1, 3] = 77
    mm = gpuhmm.AddressSpace.from_tables(levels=4, root_pfn=5, table_pfns=pfns, tables=pages, vmas=[])
    found, kept = mm.tables()
    assert kept[found.tolist().index(99), 3] == 77
    mm.set_entry(0, 4, 99 << 12 | 0x67)
    assert mm.entry(3 << 30, 3) == 77


@pytest.mark.parametrize(
    ("level", "order", "pfn"), [(1, 0, 0x1234), (2, 9, 0x1200), (3, 18, 0x40000)], ids=["4K", "2M", "1G"]
)
def test_mapping_given_pfns(level, order, pfn):
    size = 1 << (12 + 9 * (level - 1))
    mm = gpuhmm.AddressSpace()
    page_shift = 30 if level == 3 else 12
    mm.mmap(1 << 40, (1 << 40) + 4 * size, RW, page_shift)
    mm.map_pfns(1 << 40, words(pfn), level=level)
    ret, range_ = ask(mm, 1 << 40, 4, "reference")
    assert ret == 0
    expected = [(pfn + i) | VALID | WRITE | order << 56 for i in range(4)]
    assert range_.hmm_pfns.tolist() == (expected if level > 1 else [expected[0], 0, 0, 0])


def test_munmap_clears_entries_and_invalidates():
    mm = anonymous(1024)
    mm.map_pfns(BASE, np.arange(1024, dtype=np.uint64))
    notifier = mm.notifier(BASE, BASE + 0x1000)
    other = mm.notifier(BASE + 0x10_0000, BASE + 0x10_1000)
    seq, other_seq = notifier.read_begin(), other.read_begin()
    mm.munmap(BASE, BASE + 8 * 4096)
    assert notifier.read_retry(seq)
    assert not other.read_retry(other_seq)
    assert [mm.entry(BASE + i * 4096, 1) != 0 for i in (0, 7, 8)] == [False, False, True]
    assert [(vma.start, vma.end) for vma in mm.vmas] == [(BASE + 8 * 4096, BASE + 1024 * 4096)]


def test_mprotect_splits_areas_and_takes_write_away():
    mm = anonymous(16)
    mm.map_pfns(BASE, np.arange(16, dtype=np.uint64))
    mm.mprotect(BASE + 4 * 4096, BASE + 8 * 4096, VM_READ)
    _, range_ = ask(mm, BASE, 16, "reference")
    writable = (range_.hmm_pfns & gpuhmm.HMM_PFN_WRITE) != 0
    assert writable.tolist() == [True] * 4 + [False] * 4 + [True] * 8
    assert [vma.flags for vma in mm.vmas] == [RW, VM_READ, RW]


def test_mprotect_none_inverts_the_pfn_and_comes_back():
    mm = anonymous(1)
    mm.map_pfns(BASE, words(0x1234), flags=0x8000_0000_0000_0867)
    mm.mprotect(BASE, BASE + 4096, 0)
    # P and RW gone, PROTNONE set, the PFN inverted
    assert mm.entry(BASE, 1) & 0x000F_FFFF_FFFF_F101 == 0x000F_FFFF_FEDC_B100
    mm.mprotect(BASE, BASE + 4096, VM_READ | VM_EXEC)
    assert mm.entry(BASE, 1) & ~0x860 == 0x1234 << 12 | 0x5


def test_a_shared_area_maps_writable_by_default():
    mm = gpuhmm.AddressSpace()
    mm.mmap(BASE, BASE + 4096, RW | VM_SHARED)
    mm.map_pfns(BASE, words(3))
    assert mm.entry(BASE, 1) & 2


def test_notifiers_follow_their_protocol():
    mm = anonymous(4)
    notifier = mm.notifier(BASE, BASE + 4096)
    assert notifier.invalidate_seq == 1  # odd while idle: never a sequence that is live
    seq = notifier.read_begin()
    assert not notifier.check_retry(seq)
    notifier.invalidate()
    assert notifier.check_retry(seq)
    assert mm.subscriptions.invalidate_seq == 4
    with mm.subscriptions.invalidate_range(BASE, BASE + 4096):
        assert mm.subscriptions.invalidate_seq == 5
        with pytest.raises(RuntimeError, match="inside an invalidation"):
            notifier.read_begin()
    with mm.subscriptions.invalidate_range(BASE + 4096, BASE + 8192):
        assert mm.subscriptions.invalidate_seq == 6
    notifier.remove()
    with pytest.raises(ValueError, match="removed already"):
        notifier.remove()


@pytest.mark.parametrize("bits", [VM_WRITE, VM_EXEC])
def test_areas_without_read_give_error_words(bits):
    mm = gpuhmm.AddressSpace()
    mm.mmap(BASE, BASE + 8192, bits)
    ret, range_ = ask(mm, BASE, 2, "reference")
    assert ret == 0
    assert (range_.hmm_pfns == gpuhmm.HMM_PFN_ERROR).all()
    assert ask(mm, BASE, 2, "reference", default_flags=FAULT)[0] == -14
