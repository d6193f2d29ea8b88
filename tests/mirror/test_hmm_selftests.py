"""The kernel's selftest of HMM, scenario by scenario, on the mirror.

The names are those of the kernel's tests, the assertions are theirs; where the number of calls, faults and
retries follows from the semantics, that is asserted too.  Source: tools/testing/selftests/vm/hmm-tests.c,
lib/test_hmm.c (v6.1).
"""

import errno
import random
import threading

import numpy as np
import pytest
from selftest_process import (
    BUFFER,
    NPAGES,
    PAGE,
    RW,
    Process,
    counting,
    migrate,
    negative,
    read,
    snapshot,
    write,
)

from gpuhmm.memory import (
    MADV_HUGEPAGE,
    UFFDIO_REGISTER_MODE_MISSING,
    File,
    exit_mmap,
    fork,
    load,
    madvise,
    munmap,
    pin_user_pages,
    store,
    unpin_user_pages,
    userfaultfd_register,
)
from gpuhmm.mirror import (
    HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL,
    HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE,
    HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL,
    HMM_DMIRROR_PROT_ERROR,
    HMM_DMIRROR_PROT_NONE,
    HMM_DMIRROR_PROT_PMD,
    HMM_DMIRROR_PROT_PUD,
    HMM_DMIRROR_PROT_READ,
    HMM_DMIRROR_PROT_WRITE,
    HMM_DMIRROR_PROT_ZERO,
)
from gpuhmm.mm.vma import VM_MIXEDMAP, VM_READ, vm_page_prot

NTIMES = 10
RANGES = NPAGES // 64
TWOMEG = 512  # pages


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    return request.param


@pytest.fixture(params=["v5.18", "v6.1"])
def kernel(request):
    return request.param


@pytest.fixture
def process(kernel, backend):
    """A process with two devices of private memory; everything must add up in the end."""
    made = Process(kernel, backend)
    yield made
    made.check()


# There is no MEMORY_DEVICE_COHERENT before v6.0.
DEVICES = {
    "v5.18-private": ("v5.18", False),
    "v6.1-private": ("v6.1", False),
    "v6.1-coherent": ("v6.1", True),
}


@pytest.fixture(params=DEVICES.values(), ids=DEVICES.keys())
def hmm(request, backend):
    """As ``process``, for devices of private and of coherent memory."""
    kernel, coherent = request.param
    made = Process(kernel, backend, coherent)
    yield made
    made.check()


def counted(process, mirror=0):
    """Return (calls, faults, retries) of a mirror so far."""
    counters = process.mirrors[mirror].counters
    return counters.calls, counters.faults, counters.retries


def same(found, expected):
    np.testing.assert_array_equal(found, expected)


# -- reading and writing ----------------------------------------------------------------------


def test_open_close(hmm):
    for mirror in hmm.mirrors:
        mirror.close()
    assert hmm.mm.subscriptions.intervals == []


def test_anon_read(process):
    at = process.mmap(NPAGES)
    process.fill(at + 2 * PAGE, counting(NPAGES - 2, 2))
    process.mprotect(at, NPAGES, VM_READ)
    assert load(process.mm, at + PAGE) == 0  # the zero page
    data = read(process, at, NPAGES)
    assert data[:2].tolist() == [0, 0]
    same(data[2:], counting(NPAGES - 2, 2))
    # The hole at page 0 faults the whole range, 63 pages of it for nothing.
    assert counted(process) == (RANGES, 64, 0)


def test_anon_read_prot(process):
    at = process.mmap(NPAGES)
    process.fill(at, counting(NPAGES))
    process.mprotect(at, NPAGES, 0)
    result = process.mirrors[0].read(at, at + NPAGES * PAGE)
    assert (result.ret, result.data) == (-errno.EFAULT, None)
    process.mprotect(at, NPAGES, VM_READ)
    same(process.words(at, NPAGES), counting(NPAGES))


def test_anon_write(process):
    at = process.mmap(NPAGES)
    write(process, at, counting(NPAGES))
    same(process.words(at, NPAGES), counting(NPAGES))
    assert counted(process) == (RANGES, NPAGES, 0)


def test_anon_write_prot(process):
    at = process.mmap(NPAGES, VM_READ)
    assert read(process, at, 1).tolist() == [0]
    result = process.mirrors[0].write(at, counting(NPAGES))
    assert result.ret == -errno.EPERM
    assert not process.words(at, NPAGES).any()
    process.mprotect(at, NPAGES, RW)
    before = counted(process)[2]
    write(process, at, counting(NPAGES))
    same(process.words(at, NPAGES), counting(NPAGES))
    # All pages map the zero page now, since the CPU read them: each range copies, and invalidates itself.
    assert counted(process)[2] - before == RANGES


def test_one_zero_page_costs_one_retry(process):
    """The same without the CPU's reads in between: only page 0 maps the zero page."""
    at = process.mmap(NPAGES, VM_READ)
    read(process, at, 1)
    process.mprotect(at, NPAGES, RW)
    before = counted(process)
    write(process, at, counting(NPAGES))
    calls, faults, retries = (now - then for now, then in zip(counted(process), before, strict=True))
    assert (calls, faults, retries) == (RANGES + 1, NPAGES, 1)


def test_anon_write_child(process):
    at = process.mmap(NPAGES)
    process.fill(at, counting(NPAGES))
    child = fork(process.mm)
    mirror = process.mirror_of(child)
    same(process.words(at, NPAGES, child), counting(NPAGES))
    write(process, at, negative(NPAGES), mirror)
    same(process.words(at, NPAGES, child), negative(NPAGES))
    same(process.words(at, NPAGES), counting(NPAGES))
    # Every range copies its 64 pages and invalidates itself once.
    counters = mirror.counters
    assert (counters.calls, counters.faults, counters.retries) == (2 * RANGES, NPAGES, RANGES)
    mirror.close()
    exit_mmap(child)


def test_anon_write_child_shared(process):
    at = process.mmap_shared(NPAGES)
    process.fill(at, counting(NPAGES))
    child = fork(process.mm)
    mirror = process.mirror_of(child)
    same(process.words(at, NPAGES, child), counting(NPAGES))
    write(process, at, negative(NPAGES), mirror)
    same(process.words(at, NPAGES, child), negative(NPAGES))
    same(process.words(at, NPAGES), negative(NPAGES))
    mirror.close()
    exit_mmap(child)


def test_anon_write_huge(process):
    at = process.mmap(2 * TWOMEG)
    assert madvise(process.mm, at, at + TWOMEG * PAGE, MADV_HUGEPAGE) == 0
    write(process, at, counting(TWOMEG))
    same(process.words(at, TWOMEG), counting(TWOMEG))
    # The first range maps all 2 MiB; its other 63 faults find the page there.
    assert counted(process) == (TWOMEG // 64, 64, 0)
    assert snapshot(process, at, TWOMEG) == [HMM_DMIRROR_PROT_WRITE | HMM_DMIRROR_PROT_PMD] * TWOMEG


def test_anon_write_hugetlbfs(process):
    at = process.mmap(TWOMEG, page_shift=21)
    write(process, at, counting(TWOMEG))
    same(process.words(at, TWOMEG), counting(TWOMEG))
    assert counted(process) == (TWOMEG // 64, 64, 0)


@pytest.fixture(params=["shmem", "regular"])
def file(process, request):
    return File(process.memory, NPAGES * PAGE, request.param)


ELSEWHERE = BUFFER + (1 << 32)


def pwrite(process, file, words):
    """Write a file from its start, through another mapping."""
    process.mmap_shared(len(words), at=ELSEWHERE, file=file)
    process.fill(ELSEWHERE, words)
    process.munmap(ELSEWHERE, len(words))


def pread(process, file, npages):
    process.mmap_shared(npages, VM_READ, at=ELSEWHERE, file=file)
    words = process.words(ELSEWHERE, npages)
    process.munmap(ELSEWHERE, npages)
    return words


def test_file_read(process, file):
    pwrite(process, file, counting(NPAGES))
    at = process.mmap_shared(NPAGES, VM_READ, file=file)
    same(read(process, at, NPAGES), counting(NPAGES))


def test_file_write(process, file):
    at = process.mmap_shared(NPAGES, file=file)
    write(process, at, counting(NPAGES))
    same(process.words(at, NPAGES), counting(NPAGES))
    same(pread(process, file, NPAGES), counting(NPAGES))


# -- migration --------------------------------------------------------------------------------


def test_migrate(hmm):
    at = hmm.mmap(NPAGES)
    hmm.fill(at, counting(NPAGES))
    same(migrate(hmm, at, NPAGES), counting(NPAGES))


def test_migrate_file_private(process, file):
    at = process.mmap(NPAGES, file=file)
    process.fill(at, counting(NPAGES))
    same(migrate(process, at, NPAGES), counting(NPAGES))
    assert not pread(process, file, NPAGES).any()


def test_migrate_fault(hmm):
    at = hmm.mmap(NPAGES)
    hmm.fill(at, counting(NPAGES))
    same(migrate(hmm, at, NPAGES), counting(NPAGES))
    same(hmm.words(at, NPAGES // 2), counting(NPAGES // 2))
    if not hmm.coherent:  # only the second half is still on the device
        assert len(hmm.mirrors[0].page_table) == NPAGES // 2
    same(migrate(hmm, at, NPAGES), counting(NPAGES))


def test_migrate_release(hmm):
    at = hmm.mmap(NPAGES)
    hmm.fill(at, counting(NPAGES))
    same(migrate(hmm, at, NPAGES), counting(NPAGES))
    hmm.mirrors[0].release_device()
    assert snapshot(hmm, at, NPAGES) == [HMM_DMIRROR_PROT_WRITE] * NPAGES  # without any fault
    same(hmm.words(at, NPAGES), counting(NPAGES))


def test_migrate_shared(process):
    at = process.mmap_shared(NPAGES)
    assert process.mirrors[0].migrate_to_device(at, at + NPAGES * PAGE).ret == -errno.ENOENT


def test_migrate_mixed(hmm):
    at = hmm.mmap(6, 0)
    second = hmm.mirrors[1]
    assert second.migrate_to_device(at, at + 6 * PAGE).ret == -errno.EINVAL  # protected
    hmm.munmap(at + PAGE, 1)
    assert second.migrate_to_device(at, at + 3 * PAGE).ret == -errno.EINVAL  # a hole
    hmm.mprotect(at + 2 * PAGE, 1, VM_READ)
    value = load(hmm.mm, at + 2 * PAGE) + 3  # page 2: the zero page, read-only
    assert value == 3
    hmm.mprotect(at + 3 * PAGE, 1, RW)
    assert store(hmm.mm, at + 3 * PAGE, value) == 0
    hmm.mprotect(at + 3 * PAGE, 1, VM_READ)  # page 3: read-only
    hmm.mprotect(at + 4 * PAGE, 2, RW)  # pages 4 and 5: read-write
    for page in (4, 5):
        assert store(hmm.mm, at + page * PAGE, value) == 0
    assert migrate(hmm, at + 2 * PAGE, 4, mirror=1).tolist() == [0, 3, 3, 3]
    # Page 5 is on device 1: it does not come to device 0.
    assert hmm.mirrors[0].migrate_to_device(at + 5 * PAGE, at + 6 * PAGE).ret == -errno.ENOENT


def test_migrate_multiple(hmm):
    for _ in range(NTIMES):
        at = hmm.mmap(NPAGES // 4)
        hmm.fill(at, counting(NPAGES // 4))
        same(migrate(hmm, at, NPAGES // 4), counting(NPAGES // 4))
        if hmm.coherent:
            result = hmm.mirrors[0].migrate_to_system(at, at + NPAGES // 4 * PAGE)
            assert (result.ret, result.cpages) == (0, NPAGES // 4)
        same(hmm.words(at, NPAGES // 4), counting(NPAGES // 4))
        hmm.munmap(at, NPAGES // 4)


def test_anon_read_multiple(process):
    for c in range(NTIMES):
        at = process.mmap(NPAGES // 4)
        process.fill(at, counting(NPAGES // 4, c))
        same(read(process, at, NPAGES // 4), counting(NPAGES // 4, c))
        process.munmap(at, NPAGES // 4)


def test_anon_teardown(process):
    outcomes = set()
    rng = random.Random(1)
    for c in range(NTIMES):
        at = process.mmap(NPAGES)
        process.fill(at, counting(NPAGES, c))
        # The selftest sleeps up to 32 us; a walk takes longer here, and so does the delay.
        timer = threading.Timer(
            rng.random() * 0.02, munmap, (process.mm, at + NPAGES // 2 * PAGE, at + NPAGES * PAGE)
        )
        timer.start()
        result = process.mirrors[0].read(at, at + NPAGES * PAGE)
        outcomes.add(result.ret)
        if result.ret == 0:
            assert (result.cpages, result.faults) == (NPAGES, 1)
            same(result.data, counting(NPAGES, c))
        timer.join()
        process.munmap(at, NPAGES // 2)
        assert len(process.mirrors[0].page_table) == 0
    assert outcomes <= {0, -errno.EFAULT}


# -- snapshots --------------------------------------------------------------------------------


def test_mixedmap(process):
    pfn = 0x77777
    process.memory.reserve(pfn, pfn + 1)  # the driver's page
    at = process.mmap(1, RW | VM_MIXEDMAP)
    process.mm.map_pfns(at, np.array([pfn], dtype=np.uint64), flags=vm_page_prot(RW))
    assert snapshot(process, at, 1) == [HMM_DMIRROR_PROT_READ]


def test_snapshot(hmm):
    at = hmm.mmap(7, 0)
    hmm.munmap(at + PAGE, 1)
    hmm.mprotect(at + 2 * PAGE, 1, VM_READ)
    assert load(hmm.mm, at + 2 * PAGE) == 0
    hmm.mprotect(at + 3 * PAGE, 1, RW)
    assert store(hmm.mm, at + 3 * PAGE, 3) == 0
    hmm.mprotect(at + 3 * PAGE, 1, VM_READ)
    hmm.mprotect(at + 4 * PAGE, 3, RW)
    assert store(hmm.mm, at + 4 * PAGE, 3) == 0
    migrate(hmm, at + 5 * PAGE, 1, mirror=0)
    migrate(hmm, at + 6 * PAGE, 1, mirror=1)
    assert snapshot(hmm, at, 7) == [
        HMM_DMIRROR_PROT_ERROR,
        HMM_DMIRROR_PROT_ERROR,
        HMM_DMIRROR_PROT_ZERO | HMM_DMIRROR_PROT_READ,
        HMM_DMIRROR_PROT_READ,
        HMM_DMIRROR_PROT_WRITE,
        *(
            (
                HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL | HMM_DMIRROR_PROT_WRITE,
                HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE | HMM_DMIRROR_PROT_WRITE,
            )
            if hmm.coherent
            else (HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL | HMM_DMIRROR_PROT_WRITE, HMM_DMIRROR_PROT_NONE)
        ),
    ]
    assert counted(hmm)[1] == 0


@pytest.mark.parametrize(("shift", "bit"), [(21, HMM_DMIRROR_PROT_PMD), (30, HMM_DMIRROR_PROT_PUD)])
def test_compound(process, shift, bit):
    npages = 1 << (shift - 12)
    seen = 1024  # of 262144, where the page has 1 GiB
    at = process.mmap(npages, page_shift=shift)
    assert store(process.mm, at, 1) == 0
    assert snapshot(process, at, min(npages, seen)) == [HMM_DMIRROR_PROT_WRITE | bit] * min(npages, seen)
    process.mprotect(at, npages, VM_READ)
    assert snapshot(process, at, min(npages, seen)) == [HMM_DMIRROR_PROT_READ | bit] * min(npages, seen)


# -- two devices ------------------------------------------------------------------------------


def test_double_map(hmm):
    at = hmm.mmap(6)
    hmm.fill(at, counting(6))
    hmm.mprotect(at, 6, VM_READ)
    same(read(hmm, at, 6, mirror=0), counting(6))
    same(read(hmm, at, 6, mirror=1), counting(6))
    same(migrate(hmm, at, 6, mirror=1), counting(6))
    if hmm.coherent or hmm.mm.kernel.foreign_device_private_faults:
        same(read(hmm, at, 6, mirror=0), counting(6))
    else:
        # Up to v5.18 private pages of another device are an error; later they are faulted back.
        assert hmm.mirrors[0].read(at, at + 6 * PAGE).ret == -errno.EFAULT
    same(hmm.words(at, 6), counting(6))


# -- exclusive access -------------------------------------------------------------------------


def exclusive(process):
    at = process.mmap(NPAGES)
    process.fill(at, counting(NPAGES))
    result = process.mirrors[0].make_exclusive(at, at + NPAGES * PAGE)
    assert (result.ret, result.cpages) == (0, NPAGES)
    same(result.data, counting(NPAGES))
    assert process.mirrors[0].check_exclusive(at, at + NPAGES * PAGE) == -errno.EPERM
    return at


def test_exclusive(process):
    at = exclusive(process)
    process.increment(at, NPAGES)
    same(process.words(at, NPAGES), counting(NPAGES, 1))
    assert process.mirrors[0].check_exclusive(at, at + NPAGES * PAGE) == 0


def test_exclusive_mprotect(process):
    at = exclusive(process)
    process.mprotect(at, NPAGES, VM_READ)
    assert process.mirrors[0].write(at, counting(NPAGES)).ret == -errno.EPERM


def test_exclusive_cow(process):
    at = exclusive(process)
    child = fork(process.mm)
    process.increment(at, NPAGES)
    process.increment(at, NPAGES, child)
    for mm in (process.mm, child):
        same(process.words(at, NPAGES, mm), counting(NPAGES, 1))
    exit_mmap(child)


# -- get_user_pages and copies on the device --------------------------------------------------


def test_hmm_gup_test(hmm):
    at = hmm.mmap(4)
    hmm.fill(at, counting(4))
    same(migrate(hmm, at, 4), counting(4))
    for page in range(4):  # one each: GUP, GUP-fast, pin-fast and pin, the last two for long
        pfns = pin_user_pages(hmm.mm, at + page * PAGE, 1, write=True, longterm=page >= 2)
        assert not isinstance(pfns, int)
        unpin_user_pages(hmm.mm, pfns)
    stays = HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL if hmm.coherent else 0
    assert snapshot(hmm, at, 4) == [stays | HMM_DMIRROR_PROT_WRITE] * 2 + [HMM_DMIRROR_PROT_WRITE] * 2
    same(hmm.words(at, 4), counting(4))


def test_hmm_cow_in_device(hmm):
    at = hmm.mmap(4)
    hmm.fill(at, counting(4))
    same(migrate(hmm, at, 4), counting(4))
    child = fork(hmm.mm)
    hmm.fill(at, counting(4, 100))  # the parent breaks the sharing
    exit_mmap(child)
    assert snapshot(hmm, at, 4) == [HMM_DMIRROR_PROT_WRITE] * 4
    same(hmm.words(at, 4), counting(4, 100))


# -- later tests of the kernel ----------------------------------------------------------------


def huge(process, npages=TWOMEG):
    at = process.mmap(npages)
    assert madvise(process.mm, at, at + npages * PAGE, MADV_HUGEPAGE) == 0
    return at


def test_migrate_anon_huge_empty(hmm):
    at = huge(hmm)
    assert not migrate(hmm, at, TWOMEG).any()
    assert not hmm.words(at, TWOMEG).any()


def test_migrate_anon_huge_zero(hmm):
    at = huge(hmm)
    assert load(hmm.mm, at) == 0  # the huge zero page
    assert snapshot(hmm, at, 1) == [HMM_DMIRROR_PROT_READ | HMM_DMIRROR_PROT_PMD]
    assert not migrate(hmm, at, TWOMEG).any()
    assert not hmm.words(at, TWOMEG).any()


def test_migrate_anon_huge_free(hmm):
    at = huge(hmm)
    hmm.fill(at, counting(TWOMEG))
    same(migrate(hmm, at, TWOMEG), counting(TWOMEG))
    hmm.munmap(at, TWOMEG)
    assert len(hmm.mirrors[0].page_table) == 0
    assert hmm.mirrors[0].read(at, at + PAGE).ret == -errno.EFAULT


def test_migrate_anon_huge_fault(hmm):
    at = huge(hmm)
    hmm.fill(at, counting(TWOMEG))
    same(migrate(hmm, at, TWOMEG), counting(TWOMEG))
    same(hmm.words(at, TWOMEG), counting(TWOMEG))
    same(migrate(hmm, at, TWOMEG), counting(TWOMEG))


def test_partial_unmap(hmm):
    at = huge(hmm)
    hmm.fill(at, counting(TWOMEG))
    same(migrate(hmm, at, TWOMEG), counting(TWOMEG))
    hmm.munmap(at, TWOMEG // 2)
    middle = at + TWOMEG // 2 * PAGE
    same(hmm.words(middle, TWOMEG // 2), counting(TWOMEG // 2, TWOMEG // 2))


def test_userfaultfd(process):
    """Nobody can wait for user space here: a missing page of a registered area is an error."""
    at = process.mmap(8)
    process.fill(at, counting(4))
    assert userfaultfd_register(process.mm, at, at + 8 * PAGE, UFFDIO_REGISTER_MODE_MISSING) == 0
    assert process.mirrors[0].read(at, at + 8 * PAGE).ret == -errno.EFAULT
    same(read(process, at, 4), counting(4))
