"""The kernel that runs: which it is, and pages that only it can make, in a live walk."""

import gzip
import json
import platform
import subprocess
import sys

import numpy as np
import pytest
from known_process import PAGE, needs_pfns, pagemap_word, pfn, present

import gpuhmm
from gpuhmm.mm.entry import encode_swap, swp_offset, swp_type_of
from gpuhmm.mm.profile import PROFILES, kernel_profile
from gpuhmm.mm.running_kernel import choose_kernel
from gpuhmm.process import read_process, running, summarize

_CHILD = """
import ctypes, json, mmap, os, sys
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
kept, at = [], {}
for name in ("guard", "swapped", "forked"):
    # A mapping without access on both sides keeps the area one of its own.
    kept.append(mmap.mmap(-1, 4096, flags=PRIVATE, prot=0))
    area = mmap.mmap(-1, 8 * 4096, flags=PRIVATE)
    area.write(b"x" * (8 * 4096))
    kept.append(area)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    at[name] = [start, start + 8 * 4096]
guard, swapped, forked = kept[1::2]
done = {}
for name, area, advice, pages in (("guard", guard, 102, (3, 1)), ("swapped", swapped, 21, (0, 8))):
    try:
        area.madvise(advice, pages[0] * 4096, pages[1] * 4096)
        done[name] = True
    except OSError:
        done[name] = False
if not os.fork():
    sys.stdin.read()
    os._exit(0)
forked[5 * 4096] = 1
print(json.dumps([at, done]), flush=True)
sys.stdin.read()
os.wait()
"""


@pytest.fixture(scope="module")
def child():
    """Yield pid, areas by name, and whether the kernel took the advice for each."""
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        areas, done = json.loads(process.stdout.readline())
        yield process.pid, areas, done


def test_the_kernel_that_runs_is_chosen_by_release_and_config(child, monkeypatch, tmp_path):
    monkeypatch.setattr(running, "_CONFIG_GZ", tmp_path / "config.gz")
    monkeypatch.setattr(running, "_BOOT", tmp_path)
    release = platform.release()
    boot = tmp_path / f"config-{release}"
    boot.write_text("CONFIG_DEVICE_PRIVATE=y\nCONFIG_MEMORY_FAILURE=y\n")
    choice = running.running_kernel()
    assert choice.profile.lacks == ["MIGRATION"]
    assert choice.why == choose_kernel(release).why.partition(";")[0] + f", config from {boot}"
    (tmp_path / "config.gz").write_bytes(gzip.compress(b"CONFIG_MIGRATION=y\n"))
    assert running.running_kernel().profile.lacks == ["DEVICE_PRIVATE", "MEMORY_FAILURE"]
    (tmp_path / "config.gz").write_bytes(b"no gzip")
    assert running.running_kernel().profile.lacks == ["MIGRATION"]
    (tmp_path / "config.gz").write_bytes(gzip.compress(b"CONFIG_MIGRATION=y\n")[:-9])
    assert running.running_kernel().profile.lacks == ["MIGRATION"]
    capture = read_process(child[0])
    assert capture.space.kernel.lacks == ["MIGRATION"]
    assert capture.walked_as == f"walked as {capture.space.kernel.title} does: {choice.why}"


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        (None, "no guard page of our own shows the type of markers"),
        ((31, 4), "a guard page of our own is a marker of type 31, offset 4"),
        ((30, 4), "a guard page of our own is a marker of type 30, offset 4, where v6.12 has 31"),
    ],
)
def test_without_a_config_a_guard_page_is_asked(monkeypatch, tmp_path, marker, said):
    monkeypatch.setattr(running, "_CONFIG_GZ", tmp_path / "config.gz")
    monkeypatch.setattr(running, "_BOOT", tmp_path)
    monkeypatch.setattr(running, "guard_marker", lambda: marker)
    monkeypatch.setattr(platform, "release", lambda: "6.12.118")
    choice = running.running_kernel()
    assert choice.profile is PROFILES["v6.12"]
    assert choice.why == f"{choose_kernel('6.12.118').why}; {said}"


@needs_pfns
def test_a_guard_page_of_our_own_is_a_marker_31():
    if choose_kernel(platform.release()).profile.pte_marker_mask < 7:
        pytest.skip("guard pages in pagemap need Linux 6.15")
    assert running.guard_marker() == (31, 4)


def test_there_is_no_marker_where_there_are_no_guard_pages(monkeypatch):
    monkeypatch.setattr(running, "_MADV_GUARD_INSTALL", 9999)
    assert running.guard_marker() is None


@needs_pfns
def test_a_guard_page_is_a_marker(child):
    pid, areas, done = child
    if not done["guard"]:
        pytest.skip("guard pages need Linux 6.13")
    start, end = areas["guard"]
    capture = read_process(pid, start=start, end=end)
    kernel = capture.space.kernel
    assert kernel.swp_pte_marker == 31
    assert capture.space.entry(start + 3 * PAGE, 1) == encode_swap(31, 4)
    seen = gpuhmm.range_fault(capture.space, start, end, backend="cpu")
    assert seen.valid.tolist() == [page != 3 for page in range(8)]
    assert not seen.error.any()
    counts = summarize(capture, backend="cpu").total
    assert (counts.present, counts.special, counts.swapped, counts.holes) == (7, 1, 0, 0)


def test_a_guard_page_is_known_where_swap_types_are_hidden(child, monkeypatch):
    pid, areas, done = child
    start, end = areas["guard"]
    if not done["guard"] or not pagemap_word(pid, start + 3 * PAGE) >> 58 & 1:
        pytest.skip("guard pages in pagemap need Linux 6.15")
    monkeypatch.setattr("gpuhmm.process.read.pfns_visible", lambda: False)
    capture = read_process(pid, start=start, end=end, kernel="v7.3")
    assert capture.space.entry(start + 3 * PAGE, 1) == encode_swap(31, 4)
    # v5.18 has no markers: it counts as swapped out, in a slot that stands for something
    capture = read_process(pid, start=start, end=end, kernel="v5.18")
    assert capture.space.entry(start + 3 * PAGE, 1) == encode_swap(0, 1)


@needs_pfns
def test_a_swapped_page_keeps_its_slot(child):
    pid, areas, _ = child
    start, end = areas["swapped"]
    words = [pagemap_word(pid, va) for va in range(start, end, PAGE)]
    out = [word >> 62 == 1 for word in words]
    if not any(out):
        pytest.skip("nothing was swapped out (MADV_PAGEOUT without swap)")
    capture = read_process(pid, start=start, end=end)
    entries = [capture.space.entry(va, 1) for va in range(start, end, PAGE)]
    for entry, word, swapped in zip(entries, words, out, strict=True):
        if swapped:
            assert (swp_type_of(entry), swp_offset(entry)) == (word & 31, word >> 5 & (1 << 50) - 1)
            assert word & 31 < capture.space.kernel.max_swapfiles
    assert summarize(capture, backend="cpu").total.swapped == sum(out)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_dirty_pages_are_read_only_after_a_fork(child, backend):
    pid, areas, _ = child
    start, end = areas["forked"]
    capture = read_process(pid, start=start, end=end)
    seen = gpuhmm.range_fault(capture.space, start, end, backend=backend)
    assert seen.valid.all()
    assert not seen.error.any()
    # Page 5 was written after the fork: it is a copy that nobody shares.
    assert np.flatnonzero(seen.writable).tolist() == [5]
    assert (seen.orders == 0).all()
    words = [pagemap_word(pid, va) for va in range(start, end, PAGE)]
    assert all(present(word) for word in words)
    if capture.pfns_real:
        assert seen.pfns.tolist() == [pfn(word) for word in words]


def test_a_kernel_that_is_given_is_taken(child):
    capture = read_process(child[0], kernel="v6.1:no-device-private")
    assert capture.space.kernel == kernel_profile("v6.1:no-device-private")
    assert capture.walked_as == "walked as v6.1 without DEVICE_PRIVATE does: as asked for"
    summary = summarize(capture, backend="cpu")
    assert (summary.profile, summary.profile_lacks) == ("v6.1", ["DEVICE_PRIVATE"])
    assert summary.walked_as == capture.walked_as
    with pytest.raises(ValueError, match="kernel must be"):
        read_process(child[0], kernel="v6.2")
