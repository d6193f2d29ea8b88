"""What ``test_ptx_machine.py`` runs beside the tests of a GPU: compiled kernels against the reference."""

import json
import random
import re

import numpy as np
import pytest
import test_hmm_selftests as selftests
from batch_against_calls import batch_and_calls
from cuda_device import random_seeds
from ptx_machine import MACHINE
from recorded import CASES
from runs_against_words import runs_and_words
from selftest_process import Process
from spaces import BASE, RW, anonymous, ask, words
from typer.testing import CliRunner

import gpuhmm
from gpuhmm.check.difference import differences
from gpuhmm.check.fault_script import ImprovisedFaults, JournaledSpace
from gpuhmm.check.ptx import Kernel
from gpuhmm.check.random_case import random_case
from gpuhmm.check.replay import replay
from gpuhmm.cli import app
from gpuhmm.kernels.cuda import CudaResolver
from gpuhmm.kernels.device_tables import device_tables
from gpuhmm.kernels.paths import PATHS
from gpuhmm.mm.entry import encode_swap


@pytest.mark.parametrize("linked", [True, False], ids=["linked", "before linking"])
def test_random_cases(linked):
    MACHINE.options.linked = linked
    for seed in random_seeds(60):
        case = random_case(random.Random(seed), f"random case {seed}", max_pages=1 << 14)
        found = differences(case, "reference", replay(case, "reference"), "cuda", replay(case, "cuda"))
        assert not found, (case.name, found)


def test_runs_expand_to_the_words():
    for seed in random_seeds(60):
        runs_and_words(random_case(random.Random(seed), f"random case {seed}", max_pages=2500), "cuda")


@pytest.mark.parametrize("start_page", [0, 1, 511])
@pytest.mark.parametrize("odd", ["nothing", "a swap entry", "a read-only page"])
@pytest.mark.parametrize("request_", ["none", "read", "write", "by page"])
def test_whole_slots_are_streamed_and_give_the_same(start_page, odd, request_):
    mm = gpuhmm.AddressSpace()
    base = 1 << 40
    mm.mmap(base, base + (6 << 21), RW)
    mm.map_pfns(base, np.arange(1 << 20, (1 << 20) + 1536, dtype=np.uint64))
    mm.map_pfns(base + (3 << 21), words(1 << 21, 5 << 9), level=2)
    if odd == "a swap entry":
        mm.set_entry(base + (700 << 12), 1, encode_swap(3, 77))
    if odd == "a read-only page":
        mm.set_entry(base + (700 << 12), 1, 0x1234025)
    flags = int(gpuhmm.HMM_PFN_REQ_FAULT)
    both = flags | int(gpuhmm.HMM_PFN_REQ_WRITE)
    options = {
        "none": {},
        "read": {"default_flags": flags},
        "write": {"default_flags": both},
        "by page": {"pfn_flags_mask": both},
    }[request_]
    npages = 5 * 512 - start_page
    asked = np.zeros(npages, dtype=np.uint64)
    asked[700 - start_page] = asked[-1] = both
    got = []
    for backend in ("reference", "cuda"):
        space = gpuhmm.AddressSpace.from_tables(
            levels=4,
            root_pfn=mm.root_pfn,
            table_pfns=mm.tables()[0],
            tables=mm.tables()[1],
            vmas=list(mm.vmas),
        )
        ret, range_ = ask(space, base + (start_page << 12), npages, backend, words_in=asked, **options)
        got.append((ret, range_.stats, range_.hmm_pfns))
    assert got[0][:2] == got[1][:2]
    assert np.array_equal(got[0][2], got[1][2])


def test_plain_slots_are_not_resolved_page_by_page():
    mm = gpuhmm.AddressSpace()
    base = 1 << 40
    mm.mmap(base, base + (4 << 21), RW)
    mm.map_pfns(base, np.arange(1, 1025, dtype=np.uint64))
    mm.map_pfns(base + (2 << 21), words(1 << 21, 5 << 9), level=2)
    mm.set_entry(base + (600 << 12), 1, 0)
    notifier = mm.notifier(base, base + (4 << 21))
    range_ = gpuhmm.HmmRange(notifier, base + 4096, base + (4 << 21), np.zeros(2047, dtype=np.uint64))
    resolver = CudaResolver(range_)
    assert resolver.resolve(range_.start, range_.end) is None
    # The first slot is not whole, the second has a hole; the two fills are.
    assert resolver.marks[:4].copy_to_host().tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("columns", [False, True])
def test_random_batches(columns):
    for seed in random_seeds(40):
        batch_and_calls(random.Random(seed), "cuda", columns, max_pages=600)


def test_only_changed_tables_are_sent_again():
    mm = gpuhmm.AddressSpace()
    base = 1 << 40
    npages = 4 * 512
    mm.mmap(base, base + npages * 4096, RW)
    mm.map_pfns(base, np.arange(1, npages + 1, dtype=np.uint64))
    assert ask(mm, base, npages, "cuda")[0] == 0
    mirror = device_tables(mm)
    before, transfers = mirror.sent, mirror.transfers
    assert ask(mm, base, npages, "cuda")[0] == 0
    assert (mirror.sent, mirror.transfers) == (before, transfers)
    mm.set_entry(base + 513 * 4096, 1, 0)
    ret, range_ = ask(mm, base, npages, "cuda")
    assert ret == 0
    assert range_.hmm_pfns[513] == 0
    assert (mirror.sent, mirror.transfers) == (before + 1, transfers + 1)


def test_a_stream_of_the_caller():
    from numba import cuda

    mm = anonymous(4)
    mm.map_pfns(BASE, words(5, 6, 7))
    notifier = mm.notifier(BASE, BASE + 4 * 4096)
    range_ = gpuhmm.HmmRange(
        notifier,
        BASE,
        BASE + 4 * 4096,
        np.zeros(4, dtype=np.uint64),
        notifier_seq=notifier.read_begin(),
        default_flags=int(gpuhmm.HMM_PFN_REQ_FAULT),
    )
    assert gpuhmm.hmm_range_fault(range_, backend="cuda", stream=cuda.stream()) == 0
    assert (range_.hmm_pfns[:3] & ~gpuhmm.HMM_PFN_FLAGS).tolist() == [5, 6, 7]
    with pytest.raises(ValueError, match="only the cuda back end takes a stream"):
        gpuhmm.hmm_range_fault(range_, backend="reference", stream=cuda.stream())


def test_page_by_page_gives_the_same_as_streaming(monkeypatch):
    monkeypatch.setattr(PATHS, "stream", False)
    for seed in random_seeds(30, 5000):
        case = random_case(random.Random(seed), f"random case {seed}", max_pages=2500)
        found = differences(case, "reference", replay(case, "reference"), "cuda", replay(case, "cuda"))
        assert not found, (case.name, found)


def test_the_bench_times_the_device_beside_copies_there():
    arguments = "bench dense-4k thp --size 2MiB --rounds 1 --json --backend cuda"
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 0, result.output
    rows = [row for row in json.loads(result.stdout)["rows"] if row["walker"] == "cuda"]
    assert [row["baseline"] for row in rows] == ["copy, 16 bytes an access", "fill, 16 bytes an access"]


def test_a_device_array_is_walked_in_place():
    from numba import cuda

    mm = anonymous(4)
    mm.map_pfns(BASE, words(5, 6, 7, 8))
    on_device = cuda.to_device(np.zeros(4, dtype=np.uint64))
    notifier = mm.notifier(BASE, BASE + 4 * 4096)
    range_ = gpuhmm.HmmRange(notifier, BASE, BASE + 4 * 4096, on_device, notifier_seq=notifier.read_begin())
    assert gpuhmm.hmm_range_fault(range_, backend="cuda") == 0
    assert (on_device.copy_to_host() & ~gpuhmm.HMM_PFN_FLAGS).tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("coherent", [False, True], ids=["private", "coherent"])
@pytest.mark.parametrize(
    "scenario",
    [
        selftests.test_one_zero_page_costs_one_retry,
        selftests.test_migrate_mixed,
        selftests.test_mixedmap,
        selftests.test_snapshot,
        selftests.test_exclusive_mprotect,
        selftests.test_hmm_gup_test,
        selftests.test_hmm_cow_in_device,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_scenarios_of_the_kernels_selftest(scenario, coherent):
    process = Process("v6.1", "cuda", coherent)
    scenario(process)
    process.check()


@pytest.mark.parametrize("kernel", ["v5.18", "v6.1"])
def test_two_devices(kernel):
    selftests.test_double_map(Process(kernel, "cuda"))


def test_the_back_end_says_that_it_is_the_machine():
    assert gpuhmm.resolve_backend("cuda").device.startswith("PTX machine, sm_90, ")


def test_random_cases_in_device_arrays():
    """Words at any multiple of 8 bytes, in the default stream and in one of the caller."""
    from numba import cuda

    streams = [None, cuda.stream()]
    for seed in random_seeds(60):
        case = random_case(random.Random(seed), f"random case {seed}", max_pages=2500)
        expected = case.hmm_pfns_in.copy()
        one = walked(case, expected, "reference")
        at = seed // 2 % 4
        around = cuda.to_device(np.full(case.npages + 7, 0x5A5A, dtype=np.uint64))
        inside = around[at : at + case.npages]
        inside.copy_to_device(case.hmm_pfns_in)
        cuda.synchronize()
        assert walked(case, inside, "cuda", stream=streams[seed % 2]) == one, case.name
        got = around.copy_to_host()
        assert np.array_equal(got[at : at + case.npages], expected), case.name
        assert (np.delete(got, np.s_[at : at + case.npages]) == 0x5A5A).all(), case.name


def walked(case, words, backend, **more):
    """Return what a call returned, counted and did; the words are left in ``words``."""
    faults = ImprovisedFaults(case.fault_seed, case.invalidate_after)
    mm = case.space(faults, JournaledSpace)
    notifier = mm.notifier(case.start, case.end)
    range_ = gpuhmm.HmmRange(
        notifier,
        case.start,
        case.end,
        words,
        notifier_seq=notifier.read_begin(),
        default_flags=case.default_flags,
        pfn_flags_mask=case.pfn_flags_mask,
        dev_private_owner=case.dev_private_owner,
    )
    faults.watch(notifier)
    try:
        ret = gpuhmm.hmm_range_fault(range_, backend=backend, **more)
    except ValueError as error:
        ret = type(error).__name__
    return ret, range_.stats, [array.tolist() for array in mm.journal()]


def test_verify_runs_compiled_kernels(tmp_path):
    name = str(CASES[0])
    arguments = ["verify", name, "--backend", "cuda", "--ptx", "--cases", "3", "--max-pages", "40", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--save", str(tmp_path)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["device"].startswith("PTX machine")
    assert (report["different"], report["kernel_mistakes"]) == (0, [])
    assert report["cases"] > 20
    assert MACHINE.options.order == "random"


def test_verify_tells_of_a_kernels_mistake(monkeypatch, tmp_path):
    arguments = ["verify", "--backend", "cuda", "--ptx", "--cases", "1", "--max-pages", "40"]
    with monkeypatch.context() as patch:
        patch.setattr(MACHINE, "take_mistakes", lambda: ["plan: race"])
        result = CliRunner().invoke(app, [*arguments, "--save", str(tmp_path)])
    assert result.exit_code == 1
    assert "a kernel's mistake: plan: race" in result.output


#: Where kernels store what was asked for.
STORES = {"stream": "st.global.v2", "scatter": "st.global"}


def mutants(ptx, form):
    """Yield PTX in which one store of words goes to the next item, or swaps the two of a pair."""
    for i, line in enumerate(ptx):
        if line.lstrip().startswith(form):
            item = int(re.search(r"\.[bus](\d+)\s", line)[1]) // 8
            changed = [re.sub(r"(%rd\d+)(?:\+(-?\d+))?\]", rf"\1+{item}]", line, count=1)]
            if "{" in line:
                changed.append(re.sub(r"\{(\S+), (\S+)\}", r"{\2, \1}", line))
            for other in changed:
                yield other.strip(), "\n".join([*ptx[:i], other, *ptx[i + 1 :]])


def test_a_changed_instruction_is_noticed(monkeypatch):
    """Words that the compiled kernels leave in the wrong place are found wherever a store was changed."""

    def wrong():
        mm = anonymous(1536)
        mm.map_pfns(BASE, np.arange(1, 1025, dtype=np.uint64))
        mm.map_pfns(BASE + (2 << 21), words(1 << 21), level=2)
        ask(mm, BASE, 1536, "cuda")
        mm.set_entry(BASE, 1, 0x5067)  # one table is sent again, by scatter
        mm.map_pfns(BASE + (2 << 21), words(1 << 22), level=2)  # so is one of upper entries
        expected = ask(mm, BASE, 1536, "reference")[1].hmm_pfns
        try:
            seen = ask(mm, BASE, 1536, "cuda")[1].hmm_pfns
        except ValueError:  # children in the wrong place: a table seems to be missing
            MACHINE.take_mistakes()
            return True
        return bool(MACHINE.take_mistakes()) or not np.array_equal(expected, seen)

    # Only what this scenario launches: other tests compile kernels for other types of arguments.
    monkeypatch.setattr(MACHINE, "kernels", {})
    assert not wrong()
    assert {kernel.name for kernel in MACHINE.kernels.values()} >= set(STORES)
    tried = 0
    for key, kernel in list(MACHINE.kernels.items()):
        if kernel.name in STORES:
            for line, ptx in mutants(kernel.ptx, STORES[kernel.name]):
                with monkeypatch.context() as patch:
                    patch.setitem(MACHINE.kernels, key, Kernel.of(kernel.name, ptx))
                    assert wrong(), (kernel.name, line)
                tried += 1
    assert tried >= 3
