"""Page state in snapshots: a loaded space goes on exactly as the one that was saved."""

import json

import numpy as np
import pytest

import gpuhmm
from gpuhmm import memory
from gpuhmm.errors import SnapshotError
from gpuhmm.memory import DeviceMemory, File, PhysicalMemory, check_invariants, load, store
from gpuhmm.mm.vma import VM_HUGEPAGE, VM_READ, VM_SHARED, VM_WRITE
from gpuhmm.snapshot import load_snapshot, manifest, save_snapshot
from gpuhmm.snapshot.arrays import write_array
from gpuhmm.snapshot.page_state import page_state_parts

PAGE = 4096
HUGE = 2 << 20
RW = VM_READ | VM_WRITE
BASE = 0x7F00_0000_0000
ANON, THP, FILE, SHMEM, SHARED, HUGETLB, DAX, COHERENT, ZERO = (BASE + i * 8 * HUGE for i in range(9))
AREAS = {ANON: 64, THP: 1024, FILE: 40, SHMEM: 32, SHARED: 16, HUGETLB: 1536, DAX: 16, COHERENT: 8, ZERO: 512}


def build(kernel="v6.1"):
    """Return a space with pages of every kind, some of each moved, cut, swapped out or pinned."""
    machine = PhysicalMemory(frames=20_000, hugetlb_pages=5, swap_slots=64, thp="madvise")
    mm = gpuhmm.AddressSpace(kernel=kernel, memory=machine)
    files = {
        FILE: File(machine, 48 * PAGE, "regular"),
        SHMEM: File(machine, 32 * PAGE),
        DAX: File(machine, 16 * PAGE, "dax"),
    }
    flags = {THP: RW | VM_HUGEPAGE, ZERO: RW | VM_HUGEPAGE, HUGETLB: RW}
    for start, npages in AREAS.items():
        area = flags.get(start, RW | VM_SHARED if start in (SHMEM, SHARED, DAX) else RW)
        shift = 21 if start == HUGETLB else 12
        pgoff = 4 if start == FILE else None
        mm.mmap(start, start + npages * PAGE, area, shift, file=files.get(start), pgoff=pgoff)
    private = DeviceMemory(machine, 0xD0, 64)
    coherent = DeviceMemory(machine, (1 << 64) - 1, 16, coherent=True)
    for i in range(48):
        assert store(mm, ANON + i * PAGE, 100 + i) == 0
    for i in range(3):
        assert store(mm, THP + i * PAGE, 200 + i) == 0
    assert store(mm, THP + HUGE, 7) == 0
    assert load(mm, ZERO) == 0
    assert load(mm, FILE) == 0
    assert store(mm, FILE + 3 * PAGE, 300) == 0
    for start in (SHMEM, SHARED):
        for i in range(8):
            assert store(mm, start + i * PAGE, start + i) == 0
    assert store(mm, HUGETLB, 400) == 0
    assert store(mm, DAX, 500) == 0
    assert memory.swap_out(mm, ANON, ANON + 6 * PAGE) == 6
    assert load(mm, ANON + PAGE) == 101  # frees a slot, or leaves it in the swap cache
    assert memory.swap_out(mm, SHMEM, SHMEM + 2 * PAGE) == 2
    assert load(mm, SHMEM + PAGE) == SHMEM + 1  # a slot that is free again
    assert memory.migrate_to_device(mm, ANON + 8 * PAGE, ANON + 16 * PAGE, private).all()
    assert memory.migrate_to_ram(mm, ANON + 9 * PAGE, ANON + 11 * PAGE, private).all()
    assert memory.migrate_to_device(mm, COHERENT, COHERENT + 4 * PAGE, coherent).all()
    memory.make_device_exclusive_range(mm, ANON + 20 * PAGE, ANON + 21 * PAGE, 0xD0)
    assert memory.madvise(mm, ANON + 40 * PAGE, ANON + 42 * PAGE, memory.MADV_HWPOISON) == 0
    memory.pin_user_pages(mm, ANON + 24 * PAGE, ANON + 25 * PAGE)
    files[SHMEM].truncate(30 * PAGE)
    child = memory.fork(mm)
    assert store(mm, ANON + 30 * PAGE, 1) == 0
    assert memory.munmap(mm, ANON + 33 * PAGE, ANON + 35 * PAGE) == 0
    memory.exit_mmap(child)
    check_invariants(machine)
    return mm


def go_on(mm):
    """Use every area and return all that is to be seen of it."""
    seen = []
    private, coherent = mm.memory.devices
    events = []
    mm.notifier(0, mm.task_size, lambda sub, at, seq: events.append((at.event, at.start, at.end)) or True)
    for request in ("none", "read"):
        result = gpuhmm.range_fault(
            mm, ANON, ANON + 33 * PAGE, request=request, dev_private_owner=0xD0, backend="reference"
        )
        seen.append(result.hmm_pfns.tolist())
    for start, npages in AREAS.items():
        for i in range(0, npages, 1 if npages < 100 else 37):
            seen.append(load(mm, start + i * PAGE))
            if i % 2:
                seen.append(store(mm, start + i * PAGE, 1000 + i))
                seen.append(mm.entry(start + i * PAGE, 1))
    seen.append(memory.swap_out(mm, ANON, ANON + 12 * PAGE))
    seen.append(memory.swap_out(mm, SHMEM, SHMEM + 9 * PAGE))
    moved = memory.migrate_to_device(mm, ANON + 16 * PAGE, ANON + 20 * PAGE, private)
    seen.append(np.asarray(moved).tolist())
    seen.append(np.asarray(memory.migrate_to_ram(mm, COHERENT, COHERENT + PAGE, coherent)).tolist())
    seen.append(store(mm, HUGETLB + HUGE, 3))
    seen.append(memory.munmap(mm, HUGETLB, HUGETLB + HUGE))
    seen.append(memory.mprotect(mm, THP, THP + 5 * PAGE, VM_READ))
    migration = memory.migrate_pages_start(mm, ANON, ANON + 64 * PAGE)
    seen.append(memory.migrate_pages_end(migration))
    child = memory.fork(mm)
    seen.extend(store(mm, start + PAGE, 5) for start in AREAS)
    seen.extend(load(child, start + PAGE) for start in AREAS)
    memory.exit_mmap(child)
    seen.append(File(mm.memory, 3 * PAGE, "dax").lookup(0))
    seen.append([mm.memory.alloc_page(order) for order in (0, 9, 0)])
    return seen, events


def assert_same_state(left, right):
    """Tables, areas and page state of two spaces are equal, through what a snapshot would hold."""
    (left_pfns, left_tables), (right_pfns, right_tables) = left.tables(), right.tables()
    orders = np.argsort(left_pfns), np.argsort(right_pfns)
    assert np.array_equal(left_pfns[orders[0]], right_pfns[orders[1]])
    assert np.array_equal(left_tables[orders[0]], right_tables[orders[1]])
    assert list(left.vmas) == list(right.vmas)
    assert [vma.pgoff for vma in left.vmas] == [vma.pgoff for vma in right.vmas]
    assert np.array_equal(left.device_private, right.device_private)
    (scalars, arrays), (other_scalars, other_arrays) = page_state_parts(left), page_state_parts(right)
    assert scalars == other_scalars
    for name, array in arrays.items():
        assert np.array_equal(array, other_arrays[name]), name
    assert sorted(left.memory.swap._slot_of.items()) == sorted(right.memory.swap._slot_of.items())


@pytest.mark.parametrize("kernel", ["v5.18", "v6.1"])
def test_a_loaded_space_goes_on_as_the_original(kernel, tmp_path):
    mm = build(kernel)
    save_snapshot(tmp_path / "saved", mm)
    loaded = load_snapshot(tmp_path / "saved").space
    check_invariants(loaded.memory)
    assert_same_state(mm, loaded)
    assert all(vma.file is None or vma.file.memory is loaded.memory for vma in loaded.vmas)
    assert go_on(mm) == go_on(loaded)
    assert_same_state(mm, loaded)
    again = load_snapshot(tmp_path / "saved").space
    assert again.memory.nr_used != loaded.memory.nr_used  # nothing reached the files
    check_invariants(again.memory)


def test_memory_that_was_never_used_is_not_saved(tmp_path):
    mm = gpuhmm.AddressSpace()
    mm.mmap(BASE, BASE + 8 * PAGE)
    mm.map_pfns(BASE, np.array([77], dtype=np.uint64))
    save_snapshot(tmp_path / "without", mm)
    snapshot = load_snapshot(tmp_path / "without")
    assert "page_state" not in snapshot.manifest.parts
    assert not list((tmp_path / "without").glob("page_*"))
    assert snapshot.space._memory is None
    mm.memory.thp = "always"  # made, and no frame asked for: the free ones are found after loading
    save_snapshot(tmp_path / "with", mm)
    loaded = load_snapshot(tmp_path / "with").space
    assert loaded.memory.thp == "always"
    assert store(loaded, BASE + PAGE, 5) == store(mm, BASE + PAGE, 5) == 0
    assert_same_state(mm, loaded)


def test_adopted_pages_and_a_limit_that_is_reached(tmp_path):
    mm = gpuhmm.AddressSpace(kernel="v6.1", memory=PhysicalMemory(frames=8))
    mm.mmap(BASE, BASE + 16 * PAGE)
    mm.map_pfns(BASE, np.arange(500, 504, dtype=np.uint64))
    assert store(mm, BASE, 4) == 0
    save_snapshot(tmp_path / "saved", mm)
    loaded = load_snapshot(tmp_path / "saved").space
    results = [[store(space, BASE + i * PAGE, i) for i in range(16)] for space in (mm, loaded)]
    assert results[0] == results[1]
    assert any(results[0])
    assert_same_state(mm, loaded)


def test_what_cannot_be_saved_says_so_and_writes_nothing(tmp_path):
    mm = build()
    child = memory.fork(mm)
    with pytest.raises(SnapshotError, match="share one PhysicalMemory"):
        save_snapshot(tmp_path / "saved", mm)
    memory.exit_mmap(child)
    with pytest.raises(SnapshotError, match="exited"):
        save_snapshot(tmp_path / "saved", child)
    migration = memory.migrate_pages_start(mm, ANON, ANON + 64 * PAGE)
    with pytest.raises(SnapshotError, match="migration is in flight"):
        save_snapshot(tmp_path / "saved", mm)
    memory.migrate_pages_end(migration)
    stray = File(PhysicalMemory(), PAGE)
    mm.mmap(BASE - HUGE, BASE - HUGE + PAGE, RW, file=stray)
    with pytest.raises(SnapshotError, match="another machine"):
        save_snapshot(tmp_path / "saved", mm)
    other = gpuhmm.AddressSpace()
    other.mmap(BASE, BASE + PAGE, RW, file=stray)
    with pytest.raises(SnapshotError, match="not that of the space"):
        save_snapshot(tmp_path / "saved", other)
    assert list(tmp_path.iterdir()) == []


def rewrite(folder, scalars=None, arrays=None):
    """Change scalars and arrays of a snapshot, every checksum right: only their sense is wrong."""
    content = json.loads((folder / manifest.FILE).read_text())
    content.pop("sha256")
    if scalars is not None:
        scalars(content["parts"]["page_state"])
    for name, array in (arrays or {}).items():
        (folder / f"{name}.npy").unlink()
        content["arrays"][name] = vars(write_array(folder, name, array))
    content["sha256"] = manifest._digest(content)
    (folder / manifest.FILE).write_text(json.dumps(content))


SCALARS = {
    "thp": lambda part: part.update(thp="often"),
    "flag": lambda part: part.update(use_zero_page=1),
    "limit": lambda part: part.update(frames=-1),
    "count": lambda part: part.update(nr_used=1.5),
    "lacking": lambda part: part.pop("swap_left"),
    "huge zero page": lambda part: part.update(huge_zero_pfn=1 << 41),
    "free": lambda part: part.update(free_known=False),
    "no files": lambda part: part.update(files=[]),
    "one file": lambda part: part["files"].pop(),
    "file kind": lambda part: part["files"][0].update(kind="tape"),
    "file pages": lambda part: part["files"][0].update(pages=1 << 40),
    "file size": lambda part: part["files"][0].update(size=49 * PAGE),
    "file swapped": lambda part: part["files"].reverse(),
    "files none": lambda part: part.update(files=None),
    "owner": lambda part: part["devices"][0].update(owner=0),
    "device range": lambda part: part["devices"][0].update(first_pfn=5),
    "device overlap": lambda part: part["devices"][0].update(npages=1 << 12),
    "device next": lambda part: part["devices"][0].update(next=65),
    "device freed": lambda part: part["devices"][0].update(freed=0),
    "device word": lambda part: part["devices"].append("device"),
}


@pytest.mark.parametrize("damage", SCALARS)
def test_damaged_scalars_are_refused(damage, tmp_path):
    save_snapshot(tmp_path / "saved", build())
    rewrite(tmp_path / "saved", scalars=SCALARS[damage])
    with pytest.raises(SnapshotError, match="page state"):
        load_snapshot(tmp_path / "saved")


def changed(index, value):
    def change(array):
        array = array.copy()
        array[index] = value
        return array

    return change


ARRAYS = [
    ("page_pfns", lambda array: array[::-1]),
    ("page_pfns", changed(-1, 1 << 41)),
    ("page_refcount", changed(0, -1)),
    ("page_refcount", lambda array: array.astype(np.int64)),
    ("page_mapcount", changed(0, -1)),
    ("page_mapping", changed(0, 99)),
    ("page_mapping", lambda array: array * 0),
    ("page_flags", changed(0, 1 << 15)),
    ("page_order", changed(0, 3)),
    ("page_order", changed(0, 9)),
    ("page_content", lambda array: array[1:]),
    ("free_frames", lambda array: array[::-1]),
    ("free_frames", changed(0, (1, 1 << 30))),
    ("free_frames", lambda array: array.reshape(-1)),
    ("swap_slots", changed(1, 1)),
    ("swap_count", changed(0, -1)),
    ("swap_cache", changed(0, 1 << 39)),
    ("swap_freed", changed(0, 999)),
    ("file_pfns", changed(0, 1 << 39)),
    ("file_slots", changed(0, 999)),
    ("device_freed", changed(0, 5)),
    ("vma_files", lambda array: array[1:]),
    ("vma_files", changed((0, 0), 99)),
    ("vma_files", changed((0, 1), (1 << 64) - 1)),
]


@pytest.mark.parametrize("case", range(len(ARRAYS)))
def test_damaged_arrays_are_refused(case, tmp_path):
    name, damage = ARRAYS[case]
    save_snapshot(tmp_path / "saved", build())
    values = np.load(tmp_path / "saved" / f"{name}.npy")
    rewrite(tmp_path / "saved", arrays={name: damage(values)})
    with pytest.raises(SnapshotError, match="page state"):
        load_snapshot(tmp_path / "saved")
