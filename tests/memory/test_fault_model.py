"""The model of handle_mm_fault, entry by entry, against values that were worked out by hand."""

import pytest
from spaces import BASE, RW, words

import gpuhmm
from gpuhmm.memory.fault.model import FaultModel
from gpuhmm.mm.entry import encode_swap
from gpuhmm.mm.vma import VM_HUGEPAGE, VM_READ, VM_SHARED
from gpuhmm.mm.x86 import NO_PFN

NX = 1 << 63
READ, WRITE = 0x80, 0x81
PFN = 0x000F_FFFF_FFFF_F000
FRESH = NX | 0x867  # P RW US A D soft-dirty
COPIED = 8  # VM_FAULT_WRITE, which v6.1 still returns
MAJOR = 4
BLOCK = 1 << 40  # a 1 GiB border


def space(npages=512, flags=RW, *, start=BLOCK, page_shift=12, kernel="v6.1", model=None, **fields):
    mm = gpuhmm.AddressSpace(kernel=kernel, faults=model or FaultModel(), **fields)
    mm.mmap(start, start + npages * 4096, flags, page_shift)
    return mm


def fault(mm, va, flags):
    """Return the VM_FAULT_* bits, the new PTE, and how many invalidations there were."""
    before = mm.subscriptions.invalidate_seq
    watch = mm.notifier(0, 1 << 47)
    ret = mm.faults.handle_mm_fault(mm, mm.vmas.lookup(va), va, flags)
    watch.remove()
    return ret, mm.entry(va, 1), (mm.subscriptions.invalidate_seq - before) // 2


def put(mm, va, pte):
    mm.make_tables(va, 1)
    mm.set_entry(va, 1, pte)


def test_an_anonymous_read_maps_the_zero_page():
    mm = space(zero_pfn=0x1A5F)
    assert fault(mm, BLOCK, READ) == (0, 0x1A5F << 12 | NX | 0x225, 0)


def test_an_anonymous_write_maps_a_fresh_page():
    mm = space()
    ret, pte, invalidations = fault(mm, BLOCK, WRITE)
    assert (ret, pte & ~PFN, invalidations) == (0, FRESH, 0)
    pfns, _ = mm.tables()
    assert (pte & PFN) >> 12 not in {*pfns.tolist(), mm.zero_pfn, 0}


def test_fresh_pages_are_distinct_and_never_mapped_already():
    mm = space()
    mm.map_pfns(BLOCK + 100 * 4096, words(*range(2, 300)))
    assert gpuhmm.range_fault(mm, BLOCK, BLOCK + 100 * 4096, request="write", backend="reference").valid.all()
    seen = gpuhmm.range_fault(mm, BLOCK, BLOCK + 398 * 4096, backend="reference")
    assert len(set(seen.pfns.tolist())) == 398


def test_a_write_to_the_zero_page_copies_and_invalidates():
    mm = space()
    fault(mm, BLOCK, READ)
    ret, pte, invalidations = fault(mm, BLOCK, WRITE)
    assert (ret, pte & ~PFN, invalidations) == (COPIED, FRESH, 1)


def test_a_read_only_private_page_is_copied_and_a_shared_one_reused():
    private, shared = space(), space(flags=RW | VM_SHARED)
    for mm in (private, shared):
        put(mm, BLOCK, 0x1234 << 12 | NX | 0x25)
    ret, pte, invalidations = fault(private, BLOCK, WRITE)
    assert (ret, pte & ~PFN, invalidations, pte & PFN != 0x1234 << 12) == (COPIED, FRESH, 1, True)
    assert fault(shared, BLOCK, WRITE) == (COPIED, 0x1234 << 12 | FRESH, 0)


def test_with_enough_permission_a_write_sets_accessed_and_dirty_and_a_read_nothing():
    mm = space()
    put(mm, BLOCK, 0x1234 << 12 | 0x7)
    assert fault(mm, BLOCK, READ) == (0, 0x1234 << 12 | 0x7, 0)
    assert fault(mm, BLOCK, WRITE) == (0, 0x1234 << 12 | 0x867, 0)


def test_write_without_vm_write_is_a_segmentation_fault():
    assert fault(space(flags=VM_READ), BLOCK, WRITE)[0] == 0x40


def test_huge_pages_where_the_area_wants_them():
    mm = space(1024, RW | VM_HUGEPAGE)
    assert mm.huge_zero_pfn == NO_PFN
    assert fault(mm, BLOCK + 0x5000, READ)[0] == 0
    assert mm.entry(BLOCK, 2) == mm.huge_zero_pfn << 12 | NX | 0xA5
    assert mm.huge_zero_pfn % 512 == 0
    fault(mm, BLOCK + (2 << 20), WRITE)
    pmd = mm.entry(BLOCK + (2 << 20), 2)
    assert pmd & ~0x000F_FFFF_FFE0_0000 == NX | 0x8E7


def test_no_huge_page_where_the_area_does_not_span_it():
    mm = space(511, RW | VM_HUGEPAGE)
    assert fault(mm, BLOCK, WRITE)[1] & ~PFN == FRESH


def test_a_write_to_the_huge_zero_page_splits_it():
    mm = space(512, RW | VM_HUGEPAGE, zero_pfn=0x77)
    fault(mm, BLOCK, READ)
    ret, pte, invalidations = fault(mm, BLOCK + 4096, WRITE)
    assert (ret, pte & ~PFN, invalidations) == (COPIED, FRESH, 2)
    assert [mm.entry(BLOCK + i * 4096, 1) for i in (0, 511)] == [0x77 << 12 | NX | 0x225] * 2


def test_a_write_to_a_shared_huge_page_splits_and_copies_one():
    mm = space()
    mm.map_pfns(BLOCK, words(0x400), level=2, flags=NX | 0xA5)
    ret, pte, invalidations = fault(mm, BLOCK + 3 * 4096, WRITE)
    assert (ret, pte & ~PFN, invalidations) == (COPIED, FRESH, 2)
    assert mm.entry(BLOCK + 4 * 4096, 1) == 0x404 << 12 | NX | 0x25


@pytest.mark.parametrize("kernel", ["v5.18", "v6.1"])
def test_swapped_pages_come_back(kernel):
    mm = space(kernel=kernel)
    put(mm, BLOCK, encode_swap(3, 0x777) | 2)  # soft-dirty
    ret, pte, invalidations = fault(mm, BLOCK, READ)
    assert (ret, pte & ~PFN, invalidations) == (MAJOR, NX | 0x825, 0)
    put(mm, BLOCK, encode_swap(3, 0x777))
    assert fault(mm, BLOCK, WRITE)[1] & ~PFN == FRESH


@pytest.mark.parametrize(
    ("kernel", "swp_type", "flags", "expected"),
    [
        ("v6.1", 26, NX | 0x7, 1),
        ("v6.1", 27, NX | 0x5, 1),
        ("v5.18", 28, NX | 0x7, 1),
        ("v6.1", 28, 0x12345 << 12 | NX | 0x847, 1),
        ("v6.1", 29, 0x12345 << 12 | NX | 0x5, 1),
        ("v6.1", 23, 0x12345 << 12 | NX | 0x5, 0),
        ("v6.1", 25, 0x12345 << 12 | NX | 0x7, 0),
        ("v5.18", 26, 0x12345 << 12 | NX | 0x5, 0),
        ("v5.18", 27, 0x12345 << 12 | NX | 0x7, 0),
    ],
    ids=["dev-w", "dev-r", "dev-w-5.18", "excl-w", "excl-r", "mig-r", "mig-w", "mig-r-5.18", "mig-w-5.18"],
)
def test_device_and_migration_entries_come_back(kernel, swp_type, flags, expected):
    mm = space(kernel=kernel)
    put(mm, BLOCK, encode_swap(swp_type, 0x12345))
    ret, pte, invalidations = fault(mm, BLOCK, READ)
    assert ret == 0
    assert invalidations == expected
    assert pte == flags if flags & PFN else pte & ~PFN == flags


def test_a_migration_that_is_waited_for_ends():
    mm = space()
    put(mm, BLOCK, encode_swap(25, 0x12345 | 3 << 34))  # young and dirty above the PFN
    seen = gpuhmm.range_fault(mm, BLOCK, BLOCK + 4096, request="read", backend="reference")
    assert mm.entry(BLOCK, 1) == 0x12345 << 12 | FRESH
    assert seen.stats.migration_waits == 1
    huge = space()
    huge.make_tables(BLOCK, 2)
    huge.set_entry(BLOCK, 2, encode_swap(23, 0x400 | 1 << 34))
    gpuhmm.range_fault(huge, BLOCK + 4096, BLOCK + 8192, request="read", backend="reference")
    assert huge.entry(BLOCK, 2) == 0x400 << 12 | NX | 0xA5


@pytest.mark.parametrize(
    ("pte", "bits"), [(encode_swap(22, 5), 0x10), (encode_swap(31, 1), 0x2)], ids=["hwpoison", "swapin-error"]
)
def test_entries_that_cannot_come_back(pte, bits):
    mm = space()
    put(mm, BLOCK, pte)
    assert fault(mm, BLOCK, READ) == (bits, pte, 0)
    with pytest.raises(gpuhmm.HmmFaultError):
        gpuhmm.range_fault(mm, BLOCK, BLOCK + 4096, request="read", backend="reference")


def test_a_marker_that_userfaultfd_left_is_cleared_by_the_first_fault():
    mm = space()
    put(mm, BLOCK, encode_swap(30, 1))
    assert fault(mm, BLOCK, WRITE)[:2] == (0, 0)  # mm/memory.c:pte_marker_clear (v6.1)
    assert fault(mm, BLOCK, WRITE)[1] & ~PFN == FRESH


def test_a_numa_hint_is_mapped_again():
    mm = space()
    put(mm, BLOCK, 0x000F_FFFF_FEDC_B120)  # pfn 0x1234, inverted, A
    assert fault(mm, BLOCK, READ) == (0, 0x1234 << 12 | NX | 0x25, 0)


@pytest.mark.parametrize(("page_shift", "level"), [(21, 2), (30, 3)])
def test_hugetlb(page_shift, level):
    npages = 2 << (page_shift - 12)
    mm = space(npages, page_shift=page_shift)
    assert fault(mm, BLOCK + 0x3000, READ)[0] == 0
    read = mm.entry(BLOCK, level)
    assert read & ~PFN == NX | 0xA5
    assert read >> 12 & ((1 << (page_shift - 12)) - 1) == 0
    ret, _, invalidations = fault(mm, BLOCK, WRITE)
    assert (ret, invalidations, mm.entry(BLOCK, level)) == (0, 0, read | 0x842)  # nobody else has it
    shared = space(npages, RW | VM_SHARED, page_shift=page_shift)
    fault(shared, BLOCK, READ)
    assert shared.entry(BLOCK, level) & ~PFN == NX | 0x8E7


def test_an_empty_hugetlb_pool_is_a_bus_error():
    mm = space(1024, page_shift=21, model=FaultModel(hugetlb_pages=1))
    assert fault(mm, BLOCK, WRITE)[0] == 0
    assert fault(mm, BLOCK + (2 << 20), WRITE)[0] == 2


def test_without_frames_there_is_no_memory():
    mm = space(model=FaultModel(frames=4))  # three tables and one page
    assert fault(mm, BLOCK, WRITE)[0] == 0
    assert fault(mm, BLOCK + 4096, WRITE) == (1, 0, 0)
    huge = space(flags=RW | VM_HUGEPAGE, model=FaultModel(frames=10))
    assert fault(huge, BLOCK, WRITE)[1] & ~PFN == FRESH  # falls back to a small page


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("flags", [RW, RW | VM_SHARED, RW | VM_HUGEPAGE], ids=["private", "shared", "huge"])
def test_the_default_model_serves_a_walk(backend, flags):
    mm = gpuhmm.AddressSpace()
    mm.mmap(BASE, BASE + 1500 * 4096, flags)
    read = gpuhmm.range_fault(mm, BASE, BASE + 1500 * 4096, request="read", backend=backend)
    assert read.valid.all()
    written = gpuhmm.range_fault(mm, BASE, BASE + 1500 * 4096, request="write", backend=backend)
    assert written.writable.all()
    assert len(set(written.pfns.tolist())) == 1500
    # zero pages are copied: one retry for each PMD extent; shared memory was writable at once
    assert written.tries == (1 if flags & VM_SHARED else 4)
