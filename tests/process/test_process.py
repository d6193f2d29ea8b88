"""Reading live processes, compared with a naive reading of pagemap."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from known_process import (
    PAGE,
    known_process,
    needs_pfns,
    pagemap_word,
    pfn,
    pool_of_huge_pages,
    present,
)

import gpuhmm
from gpuhmm.capture.mapping import parse_maps, user_mappings
from gpuhmm.mm.entry import encode_swap
from gpuhmm.mm.profile import V6_1, V6_18
from gpuhmm.mm.vma import VM_HUGETLB, VM_IO, VM_PFNMAP, VM_READ, VM_SHARED, VM_WRITE
from gpuhmm.process import read_process, stopped, summarize
from gpuhmm.process.entries import page_entries, swap_entries
from gpuhmm.process.pagemap import Pagemap


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    with pool_of_huge_pages(2) as pool, known_process(tmp_path_factory.mktemp("child"), pool) as process:
        yield process


@pytest.fixture(scope="module")
def capture(child):
    return read_process(child.pid)


def words_of(capture, bounds, backend="cpu"):
    return gpuhmm.range_fault(capture.space, *bounds, backend=backend)


SMALL = ["touched", "some", "untouched", "zeros", "readonly", "private file", "shared file", "shared"]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_words_agree_with_pagemap_page_by_page(child, capture, name, backend):
    start, end = child.areas[name]
    seen = words_of(capture, (start, end), backend)
    naive = [pagemap_word(child.pid, va) for va in range(start, end, PAGE)]
    assert seen.valid.tolist() == [present(word) for word in naive]
    assert not seen.error.any()
    if capture.pfns_real:
        assert seen.pfns.tolist() == [pfn(word) if present(word) else 0 for word in naive]


@pytest.mark.parametrize(
    ("name", "pages", "writable"),
    [
        ("touched", range(64), range(64)),
        ("some", (0, 3, 4, 63), (0, 3, 4, 63)),
        ("untouched", (), ()),
        ("zeros", range(16), ()),
        ("readonly", range(32), ()),
        ("private file", range(8), (2,)),
        ("shared file", range(4), range(4)),
        ("shared", range(5), range(5)),
    ],
)
def test_known_pages_are_present_and_writable_as_they_were_touched(child, capture, name, pages, writable):
    seen = words_of(capture, child.areas[name])
    # A file's pages are mapped around the one that was touched.
    assert set(pages) <= set(np.flatnonzero(seen.valid).tolist())
    assert np.flatnonzero(seen.writable).tolist() == [
        page for page in np.flatnonzero(seen.valid).tolist() if page in writable or name.startswith("shared")
    ]
    if "file" not in name:
        assert np.flatnonzero(seen.valid).tolist() == list(pages)


def test_without_protection_every_page_is_an_error_and_entries_are_protnone(child, capture):
    start, end = child.areas["none"]
    seen = words_of(capture, (start, end))
    assert seen.error.all()
    entry = capture.space.entry(start, 1)
    assert entry & 0x101 == 0x100
    if capture.pfns_real:
        assert (~entry >> 12) & (1 << 40) - 1 == pfn(pagemap_word(child.pid, start))
    assert capture.space.entry(start + 8 * PAGE, 1) == 0


def test_a_transparent_huge_page_is_one_leaf(child, capture):
    start, _ = child.areas["thp"]
    huge = next(m for m in parse_maps(_read(child.pid, "smaps")) if m.start == start).pmd_mapped
    if not huge:
        pytest.skip("the kernel gave no transparent huge page")
    seen = words_of(capture, (start, start + (2 << 20)))
    assert (seen.orders == 9).all()
    assert seen.writable.all()
    if capture.pfns_real:
        assert seen.pfns.tolist() == [
            pfn(pagemap_word(child.pid, start + page * PAGE)) for page in range(512)
        ]


def test_a_hugetlb_page_is_one_leaf(child, capture):
    if "hugetlb" not in child.areas:
        pytest.skip("no hugetlb pages can be had (/proc/sys/vm/nr_hugepages)")
    start, end = child.areas["hugetlb"]
    assert capture.space.vmas.lookup(start).page_shift == 21
    seen = words_of(capture, (start, end))
    assert seen.valid.tolist() == [True] * 512 + [False] * 512
    assert (seen.orders[:512] == 9).all()
    assert seen.writable[:512].all()
    if capture.pfns_real:
        assert seen.pfns[0] == pfn(pagemap_word(child.pid, start))


def test_giant_mappings_cost_what_is_in_them(child):
    begun = time.monotonic()
    capture = read_process(child.pid)
    assert time.monotonic() - begun < 10
    start, end = child.areas["giant"]
    summary = summarize(capture, backend="cpu")
    giant = next(m for m in summary.mappings if m.start == start)
    assert (giant.end, giant.counts.present, giant.counts.writable) == (end, 3, 3)
    assert giant.counts.holes == (1 << 28) - 3
    reserve = next(m for m in summary.mappings if m.start == child.areas["reserve"][0])
    assert reserve.counts.errors == 1 << 30


def test_counts_add_up_and_agree_with_the_kernel(child, capture):
    summary = summarize(capture, backend="cpu")
    for counts in [summary.total, *(mapping.counts for mapping in summary.mappings)]:
        parts = (counts.present, counts.swapped, counts.special, counts.holes, counts.errors)
        assert sum(parts) == counts.pages
        assert counts.order_0 + counts.order_9 + counts.order_18 == counts.present
        assert min(parts) >= 0
    zeros = 16
    hugetlb = 512 if "hugetlb" in child.areas else 0
    assert abs(summary.total.resident - zeros - hugetlb - child.rss()) < 64  # rss is counted per CPU, late
    assert summary.faults_modelled is False
    assert summary.pages_per_second > 0


@needs_pfns
def test_the_longest_run_is_that_of_the_words(child, capture):
    summary = summarize(capture, backend="cpu")
    for name in SMALL:
        start, end = child.areas[name]
        runs = words_of(capture, (start, end)).runs()
        mapping = next(m for m in summary.mappings if m.start == start)
        assert mapping.counts.longest_run == runs["npages"].max(initial=0)


def test_zero_pages_are_special_entries_of_the_space(child, capture):
    start, _ = child.areas["zeros"]
    entry = capture.space.entry(start, 1)
    assert entry & 0x200
    assert (entry >> 12) & (1 << 40) - 1 == capture.space.zero_pfn


@pytest.mark.parametrize("request_", ["read", "write"])
def test_requests_fault_the_copy_and_not_the_process(child, request_):
    start, end = child.areas["untouched"]
    before = child.rss()
    capture = read_process(child.pid, start=start, end=end)
    summary = summarize(capture, request=request_, backend="cpu")
    assert (summary.total.present, summary.total.holes) == (64, 0)
    assert summary.total.faults >= 64
    assert summary.total.writable == (64 if request_ == "write" else 0)
    assert summary.faults_modelled is True
    assert any("modelled" in note for note in summary.notes)
    assert not any(present(pagemap_word(child.pid, va)) for va in range(start, end, PAGE))
    assert child.rss() == before


def test_a_failing_request_is_named_and_ends_nothing(child):
    start, _ = child.areas["readonly"]
    _, end = child.areas["none"]
    summary = summarize(read_process(child.pid, start=start, end=end), request="write", backend="cpu")
    assert [mapping.error for mapping in summary.mappings] == ["EPERM", "EFAULT"]
    assert [mapping.counts.present for mapping in summary.mappings] == [32, 0]
    assert summary.mappings[1].counts.errors == 32


def test_requests_over_giant_mappings_are_refused(child, capture):
    with pytest.raises(ValueError, match="--start and --end"):
        summarize(capture, request="read", backend="cpu")


def test_a_part_of_the_addresses(child):
    start, _ = child.areas["touched"]
    capture = read_process(child.pid, start=start + 2 * PAGE, end=start + 5 * PAGE)
    summary = summarize(capture, backend="cpu")
    assert [(m.start, m.size) for m in summary.mappings] == [(start + 2 * PAGE, 3 * PAGE)]
    assert (summary.pages_walked, summary.total.present) == (3, 3)


def test_without_pagemap_scan_the_same_is_found(child, monkeypatch):
    bounds = {"start": child.areas["touched"][0], "end": child.areas["giant"][0]}
    scanned = summarize(read_process(child.pid, **bounds), backend="cpu")
    monkeypatch.setattr(Pagemap, "scan", lambda self, start, end: None)
    capture = read_process(child.pid, **bounds)
    summary = summarize(capture, backend="cpu")
    assert summary.pagemap_scan is False
    assert any("PAGEMAP_SCAN" in note for note in summary.notes)
    if capture.process.kpageflags:
        assert summary.mappings == scanned.mappings
    with pytest.raises(ValueError, match="too much"):
        read_process(child.pid)


def test_hidden_pfns_are_numbered(child, monkeypatch):
    monkeypatch.setattr("gpuhmm.process.read.pfns_visible", lambda: False)
    capture = read_process(child.pid, end=child.areas["giant"][0])
    summary = summarize(capture, backend="cpu")
    assert summary.pfns == "numbered"
    assert summary.total.longest_run is None
    assert any("numbered" in note for note in summary.notes)
    first = words_of(capture, child.areas["touched"]).pfns
    assert (np.diff(first) == 1).all()
    assert not words_of(capture, child.areas["zeros"]).writable.any()


def test_stopped_holds_a_process_and_lets_it_go(child):
    with stopped(child.pid):
        assert child.state() == "T"
        with stopped(child.pid):
            pass
        assert child.state() == "T"
    assert child.state() != "T"


def test_what_cannot_be_stopped():
    with pytest.raises(ValueError, match="cannot stop itself"), stopped(os.getpid()):
        pass
    with pytest.raises(ValueError, match="must not be stopped"), stopped(os.getppid()):
        pass


def test_processes_that_cannot_be_read():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(ProcessLookupError, match="no process with pid"):
        read_process(gone.pid)
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessLookupError, match="zombie"):
        read_process(zombie.pid)
    zombie.wait()


@pytest.mark.parametrize(("start", "end"), [(1, None), (0, 5), (8192, 4096), (0, 1 << 60)])
def test_bad_ranges(child, start, end):
    with pytest.raises(ValueError, match="must be multiples"):
        read_process(child.pid, start=start, end=end)


def test_a_process_that_ends_while_it_is_read(tmp_path):
    with known_process(tmp_path) as process, Pagemap(process.pid) as pagemap:
        process.end()
        with pytest.raises(ProcessLookupError, match="ended"):
            pagemap.read(0, np.empty((1, 512), dtype=np.uint64))


def test_this_process_reads_itself():
    kept = np.ones(1 << 16, dtype=np.uint64)
    capture = read_process(os.getpid())
    seen = words_of(capture, (kept.ctypes.data & -PAGE, (kept.ctypes.data & -PAGE) + 4 * PAGE))
    assert seen.valid.all()


def test_swap_entries_are_those_of_encode_swap():
    kinds = np.array([0, 1, 21, 30], dtype=np.uint64)
    offsets = np.array([0, 0x12345, (1 << 50) - 1, 7], dtype=np.uint64)
    assert swap_entries(kinds, offsets).tolist() == [
        encode_swap(int(kind), int(offset)) for kind, offset in zip(kinds, offsets, strict=True)
    ]


@pytest.mark.parametrize(
    ("word", "entry"),
    [
        (1 << 62 | 3 | 0x123 << 5, encode_swap(3, 0x123)),
        (1 << 62 | 1 << 55 | 3 | 0x123 << 5, encode_swap(3, 0x123) | 2),
        (1 << 62 | 1 << 57 | 3 | 0x123 << 5, encode_swap(3, 0x123) | 4),
        (1 << 62 | 25 | 0x123 << 5, encode_swap(25, 0x123)),  # migration: the kernel's own number
        (1 << 62 | 1 << 55 | 28 | 0x123 << 5, encode_swap(28, 0x123) | 2),  # device-private
        (1 << 62 | 1 << 58 | 1 << 55 | 31 | 4 << 5, encode_swap(31, 4)),  # a guard region
        (1 << 62 | 1 << 57 | 31 | 1 << 5, encode_swap(31, 1)),  # a marker of uffd-wp has no bit of it
        (1 << 55, 0),  # soft-dirty alone: nothing is there
        (1 << 63 | 1 << 56 | 7, 7 << 12 | 1 << 63 | 0x67),
        (1 << 63 | 1 << 56 | 1 << 55 | 7, 7 << 12 | 1 << 63 | 0x867),
        (1 << 63 | 1 << 56 | 1 << 57 | 7, 7 << 12 | 1 << 63 | 0x425),
        (1 << 63 | 7, 7 << 12 | 1 << 63 | 0x25),
        (1 << 63 | 1 << 61 | 1 << 56 | 7, 7 << 12 | 1 << 63 | 0x25),
    ],
)
def test_entries_of_private_writable_pages(word, entry):
    classes = np.array([VM_READ | VM_WRITE | 0x40], dtype=np.uint8)
    words = np.array([word], dtype=np.uint64)
    assert page_entries(words, classes, V6_18).tolist() == [entry]
    assert page_entries(words, classes & 0xF, V6_18).tolist() == [0]


def test_which_type_is_a_marker_is_up_to_the_kernel():
    classes = np.array([VM_READ | VM_WRITE | 0x40] * 2, dtype=np.uint8)
    words = np.array([1 << 62 | 1 << 57 | 30 | 1 << 5, 1 << 62 | 1 << 57 | 31 | 1 << 5], dtype=np.uint64)
    of_6_1 = [encode_swap(30, 1), encode_swap(31, 1) | 4]
    assert page_entries(words, classes, V6_1).tolist() == of_6_1


def test_smaps_is_parsed_with_its_flags():
    text = """\
7f0000000000-7f0000400000 rw-s 00001000 00:0f 12 /dev/hugepages/a b: c
KernelPageSize:     2048 kB
Rss:                   8 kB
Swap:                  4 kB
VmFlags: rd wr sh mr mw me ms de ht
7ffff0000000-7ffff0004000 r--p 00000000 00:00 0                          [vvar]
KernelPageSize:        4 kB
VmFlags: rd mr pf io de dd
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
VmFlags: ex
"""
    user, kernel = user_mappings(parse_maps(text))
    assert [m.name for m in kernel] == ["[vsyscall]"]
    assert user[0].name == "/dev/hugepages/a b: c"
    assert user[0].vm_flags == VM_READ | VM_WRITE | VM_SHARED | VM_HUGETLB
    assert (user[0].page_shift, user[0].rss, user[0].swap) == (21, 8192, 4096)
    assert user[1].vm_flags == VM_READ | VM_PFNMAP | VM_IO
    assert user[1].rejected


def test_mappings_that_overlap_are_cut():
    user, _ = user_mappings(
        parse_maps("1000-5000 rw-p 0 00:00 0\n3000-8000 rw-p 0 00:00 0\n4000-6000 r--p 0 00:00 0")
    )
    assert [(m.start, m.end) for m in user] == [(0x1000, 0x5000), (0x5000, 0x8000)]


def _read(pid, name):
    return pathlib.Path(f"/proc/{pid}/{name}").read_text()
