"""Snapshots: what is saved comes back bit for bit, and nothing damaged is ever loaded."""

import contextlib
import json
import random
import resource
import shutil

import numpy as np
import pytest
from known_process import known_process
from spaces import BASE, anonymous, ask

import gpuhmm
from gpuhmm.capture import capture_of_space, cut_capture, mapping_of
from gpuhmm.check.random_case import random_case
from gpuhmm.errors import SnapshotError
from gpuhmm.process import read_process, summarize
from gpuhmm.snapshot import is_snapshot, load_snapshot, manifest, read_manifest, save_snapshot
from gpuhmm.snapshot.parts import space_of_parts, space_parts

POOLS = ("upper", "child", "leaf")


def assert_same_space(left, right):
    for name in POOLS:
        assert np.array_equal(getattr(left.page_tables, name), getattr(right.page_tables, name))
    assert list(left.page_tables.where.items()) == list(right.page_tables.where.items())
    assert list(left.page_tables.unreached) == list(right.page_tables.unreached)
    for one, other in zip(left.tables(), right.tables(), strict=True):
        assert np.array_equal(one, other)
    assert list(left.vmas) == list(right.vmas)
    for name in ("levels", "root_pfn", "kernel", "zero_pfn", "huge_zero_pfn", "highest_memmap_pfn", "shstk"):
        assert getattr(left, name) == getattr(right, name)
    assert np.array_equal(left.device_private, right.device_private)


@pytest.mark.parametrize("seed", range(20))
def test_random_spaces_come_back_bit_for_bit(seed, tmp_path):
    case = random_case(random.Random(seed), "saved")
    space = case.space()
    save_snapshot(tmp_path / "saved", space, origin={"kind": "random", "seed": seed})
    loaded = load_snapshot(tmp_path / "saved")
    assert_same_space(space, loaded.space)
    assert loaded.origin == {"kind": "random", "seed": seed}
    assert loaded.capture is None
    seen = [
        gpuhmm.range_fault(mm, case.start, case.end, backend="cpu").hmm_pfns for mm in (space, loaded.space)
    ]
    assert np.array_equal(*seen)


def test_a_kernel_of_another_config_comes_back(tmp_path):
    kernel = gpuhmm.PROFILES["v6.12"].with_config(device_private=False)
    save_snapshot(tmp_path / "saved", gpuhmm.AddressSpace(kernel=kernel, shstk=True))
    assert_same_space(gpuhmm.AddressSpace(kernel=kernel, shstk=True), load_snapshot(tmp_path / "saved").space)


def test_a_snapshot_that_names_its_kernel_by_swap_types_is_of_the_full_config():
    """As they were saved while v5.18 and v6.1 were the only kernels; then without shstk."""
    scalars, arrays = space_parts(gpuhmm.AddressSpace(kernel="v6.1"))
    del scalars["shstk"]
    scalars["kernel"] = {"name": "v6.1", "max_swapfiles": 22, "swp_hwpoison": 22, "swp_pfn_bits": [34, 40]}
    assert space_of_parts(scalars, arrays).kernel is gpuhmm.PROFILES["v6.1"]
    scalars["kernel"]["name"] = "v4.4"
    with pytest.raises(SnapshotError, match=r"one of v5\.18, .*'v4\.4'"):
        space_of_parts(scalars, arrays)


def test_a_live_process_comes_back_bit_for_bit(tmp_path):
    with known_process(tmp_path) as child:
        capture = read_process(child.pid)
    save_snapshot(tmp_path / "saved", capture)
    loaded = load_snapshot(tmp_path / "saved").capture
    assert_same_space(capture.space, loaded.space)
    for name in ("windows", "windows_with_swap"):
        assert np.array_equal(getattr(capture, name), getattr(loaded, name))
    same = ("start", "end", "mappings", "resident", "pfns_real", "seconds", "notes", "write_rule")
    for name in (*same, "source", "origin", "process", "kernel_why", "walked_as"):
        assert getattr(capture, name) == getattr(loaded, name)
    before, after = (summarize(one, backend="cpu") for one in (capture, loaded))
    assert before.mappings == after.mappings


def test_a_capture_that_is_no_process_comes_back_without_one(tmp_path):
    mm = anonymous(8)
    made = capture_of_space(mm, [mapping_of(vma) for vma in mm.vmas], source="a test", notes=["n"], origin={})
    folder = save_snapshot(tmp_path / "saved", made)
    loaded = load_snapshot(folder).capture
    assert loaded.process is None
    assert (loaded.title, loaded.notes, loaded.resident) == ("a test", ["n"], [0])
    parts = json.loads((folder / manifest.FILE).read_text())["parts"]
    assert set(parts["capture"]) == {
        *("start", "end", "mappings", "resident", "pfns_real", "seconds", "notes", "write_rule", "source"),
        "kernel_why",
    }
    # Version 1 was first written with a process 0 in its place.
    nobody = {"pid": 0, "command": "", "state": "", "parent": 0, "kernel_thread": False}
    rewritten(folder, parts={**parts, "capture": {**parts["capture"], "identity": nobody}})
    assert load_snapshot(folder).capture.process is None


def test_a_capture_keeps_its_kernel_and_why(tmp_path):
    mm = gpuhmm.AddressSpace(kernel="v6.12:no-device-private,no-memory-failure")
    mm.mmap(BASE, BASE + 4096)
    vmas = [mapping_of(vma) for vma in mm.vmas]
    made = capture_of_space(mm, vmas, source="a test", notes=[], origin={}, kernel_why="Linux 6.12.1")
    folder = save_snapshot(tmp_path / "saved", made)
    loaded = load_snapshot(folder).as_capture()
    assert loaded.space.kernel == mm.kernel
    lacking = "v6.12 without DEVICE_PRIVATE and MEMORY_FAILURE"
    assert loaded.walked_as == f"walked as {lacking} does: Linux 6.12.1"
    assert cut_capture(loaded, 0, BASE + 4096).walked_as == loaded.walked_as
    # Version 1 was first written without a why.
    parts = json.loads((folder / manifest.FILE).read_text())["parts"]
    del parts["capture"]["kernel_why"]
    rewritten(folder, parts=parts)
    assert load_snapshot(folder).as_capture().walked_as == f"walked as {lacking} does"


def test_what_only_a_process_has_is_none_without_one(tmp_path):
    mm = anonymous(8)
    made = capture_of_space(mm, [mapping_of(vma) for vma in mm.vmas], source="a test", notes=[], origin={})
    summary = summarize(made, backend="cpu")
    assert (summary.source, summary.pid, summary.command, summary.kernel) == ("a test", None, None, None)
    assert (summary.stopped, summary.changed, summary.left_out) == (None, None, None)


def test_faults_after_loading_are_those_of_the_space_itself_and_leave_the_files(tmp_path):
    mm = anonymous(600)
    mm.map_pfns(BASE, np.arange(5, 105, dtype=np.uint64))
    save_snapshot(tmp_path / "saved", mm)
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    loaded = load_snapshot(tmp_path / "saved").space
    for space in (mm, loaded):
        assert ask(space, BASE, 600, "cpu", default_flags=int(gpuhmm.HMM_PFN_REQ_FAULT))[0] == 0
    assert_same_space(mm, loaded)
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == files


def test_the_folder_appears_whole_or_not_at_all(tmp_path):
    mm = anonymous(1 << 16)
    mm.map_pfns(BASE, np.arange(1, (1 << 16) + 1, dtype=np.uint64))
    target = tmp_path / "inside" / "saved"
    target.parent.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a full disk: a write fails
    try:
        with pytest.raises(OSError, match="was not written"):
            save_snapshot(target, mm)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(target.parent.iterdir()) == []


def test_nothing_is_overwritten_that_is_no_snapshot(tmp_path):
    mm = anonymous(4)
    save_snapshot(tmp_path / "saved", mm)
    with pytest.raises(FileExistsError, match="exists"):
        save_snapshot(tmp_path / "saved", mm)
    mm.map_pfns(BASE, np.array([7], dtype=np.uint64))
    save_snapshot(tmp_path / "saved", mm, overwrite=True)
    assert load_snapshot(tmp_path / "saved").space.entry(BASE, 1) >> 12 & 0xFF == 7
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    with pytest.raises(FileExistsError, match="is no snapshot"):
        save_snapshot(tmp_path / "mine", mm, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "saved"]
    with pytest.raises(FileNotFoundError):
        save_snapshot(tmp_path / "nowhere" / "saved", mm)


@pytest.fixture
def saved(tmp_path):
    """Return the folder of a snapshot with every kind of part."""
    mm = gpuhmm.AddressSpace(kernel="v6.1", device_private=[(100, 200, 7)])
    mm.mmap(BASE, BASE + (4 << 21))
    mm.map_pfns(BASE, np.arange(1, 700, dtype=np.uint64))
    mm.map_pfns(BASE + (2 << 21), np.array([512], dtype=np.uint64), level=2)
    return save_snapshot(tmp_path / "saved", mm)


def rewritten(folder, **changes):
    """Store a manifest with fields changed and a checksum that fits."""
    content = json.loads((folder / manifest.FILE).read_text())
    content.update(changes)
    content.pop("sha256")
    content["sha256"] = manifest._digest(content)
    (folder / manifest.FILE).write_text(json.dumps(content))


def test_every_flipped_bit_is_found(saved, tmp_path):
    rng = random.Random(4)
    original = load_snapshot(saved).space
    files = sorted(saved.iterdir())
    for _ in range(300):
        broken = tmp_path / "broken"
        shutil.copytree(saved, broken)
        path = broken / rng.choice(files).name
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with pytest.raises(SnapshotError):
            load_snapshot(broken)
        shutil.rmtree(broken)
    assert_same_space(original, load_snapshot(saved).space)


def test_unchecked_damage_is_harmless(saved, tmp_path):
    """Without checksums a snapshot may be wrong, but no walk of it leaves its tables."""
    rng = random.Random(5)
    loaded = refused = 0
    for _ in range(200):
        broken = tmp_path / "broken"
        shutil.copytree(saved, broken)
        path = broken / (rng.choice(["upper", "child", "where", "leaf", "vmas", "device_private"]) + ".npy")
        data = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 1, 20])):
            data[rng.randrange(128, len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            space = load_snapshot(broken, verify=False).space
        except SnapshotError:
            refused += 1
        else:
            loaded += 1
            for backend in ("reference", "cpu"):
                with contextlib.suppress(ValueError, gpuhmm.HmmError):
                    gpuhmm.range_fault(space, BASE, BASE + (4 << 21), backend=backend)
        shutil.rmtree(broken)
    assert loaded > 20
    assert refused > 20


def test_files_that_are_cut_missing_or_too_many(saved):
    for path in sorted(saved.glob("*.npy")):
        data = path.read_bytes()
        path.write_bytes(data[:-1])
        with pytest.raises(SnapshotError, match="must have"):
            load_snapshot(saved, verify=False)
        path.unlink()
        with pytest.raises(SnapshotError, match="lacks"):
            load_snapshot(saved)
        path.write_bytes(data)
    (saved / "beside.txt").write_text("ignored")
    load_snapshot(saved)


def test_a_newer_version_says_so(saved):
    rewritten(saved, version=manifest.VERSION + 1)
    with pytest.raises(SnapshotError, match="newer"):
        load_snapshot(saved)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '{"sha256": 1}', '{"format": "x", "version": 1, "sha256": ""}', "[" * 10**5],
)
def test_manifests_that_are_none(saved, text):
    (saved / manifest.FILE).write_text(text)
    with pytest.raises(SnapshotError):
        load_snapshot(saved)


def test_forged_manifests_are_refused(saved):
    arrays = json.loads((saved / manifest.FILE).read_text())["arrays"]
    for changes in (
        {"arrays": {}},
        {"arrays": {**arrays, "../leaf": arrays["leaf"]}},
        {"arrays": {**arrays, "leaf": arrays["upper"]}},
        {"arrays": {**arrays, "leaf": {**arrays["leaf"], "shape": [1, 2]}}},
        {"arrays": {**arrays, "leaf": 7}},
        {"parts": {}},
        {"parts": {"space": {"levels": 9}}},
        {"parts": 3},
    ):
        before = (saved / manifest.FILE).read_bytes()
        rewritten(saved, **changes)
        with pytest.raises(SnapshotError):
            load_snapshot(saved)
        (saved / manifest.FILE).write_bytes(before)


def test_what_is_no_folder_of_a_snapshot(saved, tmp_path):
    for path in (tmp_path / "nothing", tmp_path, saved / "leaf.npy"):
        assert not is_snapshot(path)
        with pytest.raises(SnapshotError):
            load_snapshot(path)
    assert is_snapshot(saved)
    assert read_manifest(saved).version == manifest.VERSION
