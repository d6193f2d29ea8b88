"""The CPU back end against the reference where its fast loops end: odd entries among plain ones."""

import os
import subprocess
import sys
from errno import EFAULT
from pathlib import Path

import numba
import numpy as np
import pytest
from spaces import BASE, RW, ask

import gpuhmm
from gpuhmm.bench.workloads import BASE as WORKLOAD_BASE
from gpuhmm.bench.workloads import fragmented
from gpuhmm.kernels import cpu, paths
from gpuhmm.kernels.paths import PATHS
from gpuhmm.mm import x86
from gpuhmm.mm.entry import encode_swap
from gpuhmm.mm.profile import PROFILES
from gpuhmm.mm.vma import VM_READ

ROOT = Path(__file__).parents[2]

FAULT = int(gpuhmm.HMM_PFN_REQ_FAULT)
WRITE = FAULT | int(gpuhmm.HMM_PFN_REQ_WRITE)
OWNER = 77
HIGHEST = 0x4F_FFFF
PRESENT = 0x8000_0000_0000_0067
INVERTED = int(x86.PTE_PFN_MASK)

#: One PTE of every sort that is not a plain, writable page.
ODD = {
    "none": 0,
    "accessed": 0x20,
    "read-only": 0x5065,
    "swap": encode_swap(2, 0x123),
    "migration": encode_swap(26, 0x123),
    "own device page": encode_swap(28, 0x900),
    "own device page, read-only": encode_swap(29, 0x901),
    "foreign device page": encode_swap(28, 0xA00),
    "device exclusive": encode_swap(30, 0x900),
    "hwpoison": encode_swap(25, 0x5),
    "protnone": (0x5000 ^ INVERTED) | 0x160,
    "special": 0x5267,
    "zero page": 0x1A5F << 12 | 0x225,
    "devmap": 0x7000 | 0x67 | 1 << 58,
    "special devmap": 0x7000 | 0x267 | 1 << 58,
    "beyond the memory map": HIGHEST + 1 << 12 | 0x67,
    "last of the memory map": HIGHEST << 12 | 0x67,
}
REQUESTS = {
    "snapshot": (0, 0),
    "read": (FAULT, 0),
    "write": (WRITE, 0),
    "by page": (0, WRITE),
    "by page, read at least": (FAULT, WRITE),
}


class Refusing:
    """Notes what is asked and fails, so that the words above the stop must be the inputs."""

    def __init__(self, *, mends=0):
        self.calls = []
        self.mends = mends

    def handle_mm_fault(self, mm, vma, va, flags):
        self.calls.append((va, flags))
        if len(self.calls) > self.mends:
            return 2
        mm.make_tables(va, 1)
        mm.set_entry(va, 1, 0x9067)
        return 0

    def migration_entry_wait(self, mm, va, level):
        self.calls.append((va, level))
        mm.set_entry(va, level, 0x9067)


def space(npages, handler):
    mm = gpuhmm.AddressSpace(
        faults=handler,
        highest_memmap_pfn=HIGHEST,
        device_private=[(0x900, 0x910, OWNER), (0xA00, 0xA10, OWNER + 1)],
    )
    mm.mmap(BASE, BASE + npages * 4096, RW)
    mm.map_pfns(BASE, np.arange(0x1000, 0x1000 + npages, dtype=np.uint64))
    return mm


def both(build, first, count, **request):
    """Assert that both back ends do the same; return the code that they return."""
    outcomes = []
    for backend in ("reference", "cpu"):
        mm = build()
        ret, range_ = ask(mm, first, count, backend, dev_private_owner=OWNER, **request)
        outcomes.append((ret, mm.faults.calls, range_.stats, range_.hmm_pfns.tolist()))
    assert outcomes[0] == outcomes[1]
    return outcomes[0][0]


@pytest.fixture(
    params=[(1, True), (2, True), (2, False)],
    ids=["one thread, past the caches", "two threads, past the caches", "two threads, into the caches"],
)
def threads(request, monkeypatch):
    """Make even small ranges run in parallel, in turns of one slot, storing past the caches or into them."""
    before = numba.get_num_threads()
    threads, past_caches = request.param
    if threads > numba.config.NUMBA_NUM_THREADS:
        pytest.skip("there is one CPU only")
    numba.set_num_threads(threads)
    monkeypatch.setattr(PATHS, "parallel_from", 0)
    monkeypatch.setattr(PATHS, "past_caches_from", 0 if past_caches else 1 << 40)
    monkeypatch.setattr(cpu, "_RUN", np.uint64(1))
    yield
    numba.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("request_", REQUESTS, ids=str)
@pytest.mark.parametrize("odd", ODD, ids=str)
def test_one_odd_entry_among_plain_ones(odd, request_):
    rng = np.random.default_rng(len(odd))
    default_flags, pfn_flags_mask = REQUESTS[request_]
    for at in (0, 63, 64, 511, int(rng.integers(512))):

        def build(at=at):
            mm = space(512, Refusing())
            mm.set_entry(BASE + at * 4096, 1, ODD[odd])
            return mm

        words_in = rng.integers(0, 4, 512, dtype=np.uint64) << np.uint64(62)
        both(build, BASE, 512, words_in=words_in, default_flags=default_flags, pfn_flags_mask=pfn_flags_mask)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_random_mixes_over_several_tables(request_):
    rng = np.random.default_rng(9)
    default_flags, pfn_flags_mask = REQUESTS[request_]
    npages = 5 * 512
    for density in (0.001, 0.01, 0.5):
        for mends in (0, 3):
            odd = np.flatnonzero(rng.random(npages) < density).tolist()
            sorts = rng.choice(list(ODD.values()), len(odd)).tolist()
            gone = int(rng.integers(0, 5))

            def build(odd=odd, sorts=sorts, gone=gone, mends=mends):
                mm = space(npages, Refusing(mends=mends))
                for page, value in zip(odd, sorts, strict=True):
                    mm.set_entry(BASE + page * 4096, 1, value)
                if mends:  # a hole of a whole table
                    mm.set_entry(BASE + (gone << 21), 2, 0)
                return mm

            first, past = sorted(rng.integers(0, npages, 2).tolist())
            count = past - first + 1
            words_in = rng.integers(0, 4, count, dtype=np.uint64) << np.uint64(62)
            words_in[rng.random(count) < 0.9] = 0
            both(
                build,
                BASE + first * 4096,
                count,
                words_in=words_in,
                default_flags=default_flags,
                pfn_flags_mask=pfn_flags_mask,
            )


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("asking", [0, 700, 1023, 1500, 2047])
def test_a_need_inside_a_hole_of_several_slots_keeps_all_its_inputs(asking):
    def build():
        mm = gpuhmm.AddressSpace(faults=Refusing())
        mm.mmap(BASE, BASE + 2048 * 4096, RW)
        mm.map_pfns(BASE, np.arange(1, 101, dtype=np.uint64))
        return mm

    words_in = np.arange(2048, dtype=np.uint64)
    words_in[asking] |= np.uint64(FAULT)
    assert both(build, BASE, 2048, words_in=words_in, pfn_flags_mask=FAULT) == (-EFAULT if asking else 0)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("stop", [0, 511, 512, 4000, 8191])
def test_inputs_above_a_stop_survive_in_the_part_of_every_thread(stop):
    def build():
        mm = space(8192, Refusing())
        mm.set_entry(BASE + stop * 4096, 1, 0)
        return mm

    words_in = np.arange(8192, dtype=np.uint64)
    assert both(build, BASE, 8192, words_in=words_in, default_flags=FAULT) == -EFAULT


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_words_may_lie_at_any_address_and_begin_at_any_page(request_):
    """Leaf tables, a hole and a huge page; the array's neighbours keep what they hold."""
    default_flags, pfn_flags_mask = REQUESTS[request_]
    rng = np.random.default_rng(3)

    def build():
        mm = space(5 * 512, Refusing())
        mm.set_entry(BASE + (3 << 21), 2, 0x1E_0000 << 12 | 0xE7)
        if not default_flags:
            mm.set_entry(BASE + (1 << 21), 2, 0)
            for page, value in zip(rng.integers(0, 512, 40).tolist(), [*ODD.values()] * 3, strict=False):
                mm.set_entry(BASE + page * 4096, 1, value)
        return mm

    mm = build()
    for offset in range(9):
        for first, count in ((0, 2560), (1, 2559), (7, 1500), (505, 20), (511, 1), (513, 9), (1030, 1500)):
            around = np.full(count + 32, 0x1234, dtype=np.uint64)
            start = (-around.ctypes.data // 8) % 8 + offset
            words = around[start : start + count]
            words[:] = 0
            wanted = ask(mm, BASE + first * 4096, count, "reference", **_flags(default_flags, pfn_flags_mask))
            notifier = mm.notifier(BASE, BASE + 2560 * 4096)
            range_ = gpuhmm.HmmRange(
                notifier,
                BASE + first * 4096,
                BASE + (first + count) * 4096,
                words,
                notifier_seq=notifier.read_begin(),
                dev_private_owner=OWNER,
                **_flags(default_flags, pfn_flags_mask, owner=False),
            )
            assert gpuhmm.hmm_range_fault(range_, backend="cpu") == wanted[0] == 0
            assert np.array_equal(words, wanted[1].hmm_pfns)
            assert (np.delete(around, np.arange(start, start + count)) == 0x1234).all()


def _flags(default_flags, pfn_flags_mask, *, owner=True):
    flags = {"default_flags": default_flags, "pfn_flags_mask": pfn_flags_mask}
    return flags | {"dev_private_owner": OWNER} if owner else flags


@pytest.mark.usefixtures("threads")
def test_stores_wait_for_no_loads_wherever_tables_and_words_lie_in_their_pages():
    """Entries are taken from the last to the first where words lie a little above them in the page."""
    mm = space(4 * 512, Refusing())
    for page in (0, 5, 700, 1023):
        mm.set_entry(BASE + page * 4096, 1, 0)
    _, wanted = ask(mm, BASE, 2048, "reference")
    around = np.zeros(2048 + 1024, dtype=np.uint64)
    for apart in (8, 16, 64, 1016, 1024, 2048, 4088):
        start = ((mm.page_tables.leaf.ctypes.data + apart - around.ctypes.data) % 4096) // 8
        words = around[start : start + 2048]
        words[:] = 7
        ret, range_ = _ask_into(mm, words)
        assert ret == 0
        assert np.array_equal(range_.hmm_pfns, wanted.hmm_pfns), apart


def _ask_into(mm, words):
    notifier = mm.notifier(BASE, BASE + len(words) * 4096)
    range_ = gpuhmm.HmmRange(
        notifier, BASE, BASE + len(words) * 4096, words, notifier_seq=notifier.read_begin()
    )
    return gpuhmm.hmm_range_fault(range_, backend="cpu"), range_


def test_ranges_beyond_the_largest_cache_are_stored_past_it(monkeypatch, tmp_path):
    """Where 8 bytes of entries and 8 of words a page fill it."""
    pages = paths.last_level_cache_bytes() // 16
    assert not paths.goes_past_caches(pages - 1, PROFILES["v5.18"])
    assert paths.goes_past_caches(pages, PROFILES["v5.18"])
    # From v6.16 on words keep bits of their inputs, which are in the caches then.
    assert not paths.goes_past_caches(pages, PROFILES["v6.17"])
    for index, size in enumerate(("32K", "64K", "512K", "8192K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    monkeypatch.setattr(paths, "_CACHES", tmp_path)
    paths.last_level_cache_bytes.cache_clear()
    assert paths.last_level_cache_bytes() == 8 << 20
    monkeypatch.setattr(paths, "_CACHES", tmp_path / "missing")
    paths.last_level_cache_bytes.cache_clear()
    assert paths.last_level_cache_bytes() == 32 << 20
    paths.last_level_cache_bytes.cache_clear()


@pytest.mark.parametrize("cpu_name", ["x86-64", "haswell"])
def test_processors_with_narrow_vectors_give_the_same(cpu_name):
    """SSE2 only, and AVX2: LLVM lowers eight words to what the processor has."""
    environment = os.environ | {"NUMBA_CPU_NAME": cpu_name, "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k"]
    command.append("any_address and one and (snapshot or page)")
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert " passed" in done.stdout


def test_threads_take_turns_over_a_long_range():
    """More slots than the turns of all threads, with a stop in the last turn."""
    npages = 300 * 512
    words = np.zeros(npages, dtype=np.uint64)
    mm = gpuhmm.AddressSpace(faults=Refusing())
    mm.mmap(BASE, BASE + npages * 4096, VM_READ)
    mm.map_pfns(BASE, np.arange(1, npages + 1, dtype=np.uint64))
    for stop in (npages - 1, 299 * 512, 128 * 512 + 5, 64 * 512):
        mm.set_entry(BASE + stop * 4096, 1, 0)
        words[:] = np.arange(npages)
        ret, range_ = ask(mm, BASE, npages, "cpu", words_in=words, default_flags=FAULT)
        assert ret == -EFAULT
        below = np.arange(1, stop + 1, dtype=np.uint64) | np.uint64(FAULT)
        assert (range_.hmm_pfns[:stop] == below).all()
        assert (range_.hmm_pfns[stop:] == words[stop:]).all()


@pytest.mark.parametrize("stop_page", [None, 5, 9000, 20_001, 32_767])
@pytest.mark.parametrize("threads", ["several", "one"])
def test_mixed_tables_in_which_pages_ask_for_what_is_there(monkeypatch, stop_page, threads):
    monkeypatch.setattr(PATHS, "parallel_from", 0 if threads == "several" else 1 << 40)
    npages = 64 * 512
    spaces = [fragmented(npages) for _ in range(2)]
    _, seen = ask(spaces[0], WORKLOAD_BASE, npages, "reference")
    both = gpuhmm.HMM_PFN_REQ_FAULT | gpuhmm.HMM_PFN_REQ_WRITE
    asked = seen.hmm_pfns & both
    if stop_page is not None:  # the next hole from there on is asked for, and faulted
        hole = stop_page + int(np.flatnonzero(np.roll(seen.hmm_pfns, -stop_page) == 0)[0])
        asked[hole % npages] = gpuhmm.HMM_PFN_REQ_FAULT
    got = [
        ask(mm, WORKLOAD_BASE, npages, backend, words_in=asked, pfn_flags_mask=int(both))
        for mm, backend in zip(spaces, ("reference", "cpu"), strict=True)
    ]
    assert got[0][0] == got[1][0] == 0
    assert got[0][1].stats == got[1][1].stats
    assert (stop_page is None) == (got[0][1].stats.faults == 0)
    assert np.array_equal(got[0][1].hmm_pfns, got[1][1].hmm_pfns)
