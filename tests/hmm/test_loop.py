"""The driver loop for Python users."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from spaces import BASE, RW, anonymous, words

import gpuhmm
from gpuhmm.shared import COMPILING


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    return request.param


class Invalidating:
    """Maps pages, and invalidates the caller's notifier a given number of times."""

    def __init__(self, times):
        self.times = times

    def handle_mm_fault(self, mm, vma, va, flags):
        mm.make_tables(va, 1)
        mm.set_entry(va, 1, (va >> 12 & 0xFFFF) << 12 | 0x67)
        if self.times:
            self.times -= 1
            with mm.subscriptions.invalidate_range(va, va + 4096):
                mm.set_entry(va, 1, 0)
        return 0

    def migration_entry_wait(self, mm, va, level):
        raise AssertionError("no migration here")


def test_a_snapshot_gives_pfns_flags_orders_and_runs(backend):
    mm = gpuhmm.AddressSpace()
    base = 1 << 40
    mm.mmap(base, base + (4 << 20), RW)
    mm.map_pfns(base, words(0x4000), level=2)
    mm.map_pfns(base + (2 << 20), words(7, 8, 9, 50, 51))
    seen = gpuhmm.range_fault(mm, base, base + (4 << 20), backend=backend)
    assert seen.orders[:512].tolist() == [9] * 512
    assert seen.pfns[511:518].tolist() == [0x41FF, 7, 8, 9, 50, 51, 0]
    assert seen.valid.sum() == seen.writable.sum() == 517
    assert not seen.error.any()
    flags = int(gpuhmm.HMM_PFN_VALID | gpuhmm.HMM_PFN_WRITE)
    assert seen.runs().tolist() == [
        (base, 0x4000, 512, flags, 9),
        (base + (2 << 20), 7, 3, flags, 0),
        (base + (2 << 20) + 3 * 4096, 50, 2, flags, 0),
    ]
    assert seen.backend == backend


def test_requests_are_restored_before_a_retry(backend):
    mm = anonymous(8, faults=Invalidating(times=2))
    requests = np.zeros(8, dtype=np.uint64)
    requests[5] = gpuhmm.HMM_PFN_REQ_FAULT
    seen = gpuhmm.range_fault(mm, BASE, BASE + 8 * 4096, requests=requests, backend=backend)
    assert seen.tries > 1
    assert seen.valid[5:].all()
    assert requests.tolist() == [0] * 5 + [int(gpuhmm.HMM_PFN_REQ_FAULT)] + [0] * 2


@pytest.mark.parametrize(
    ("request_", "flags", "error", "number"),
    [("read", 0, gpuhmm.HmmFaultError, 14), ("write", 1, gpuhmm.HmmPermissionError, 1)],
)
def test_errors_are_raised_with_their_errno(backend, request_, flags, error, number):
    mm = gpuhmm.AddressSpace()
    mm.mmap(BASE, BASE + 4096, flags)
    with pytest.raises(error) as caught:
        gpuhmm.range_fault(mm, BASE, BASE + 4096, request=request_, backend=backend)
    assert caught.value.errno == number
    assert isinstance(caught.value, OSError)
    assert not mm.subscriptions.intervals


def test_a_range_that_never_settles_times_out(backend):
    class Endless(Invalidating):
        def handle_mm_fault(self, mm, vma, va, flags):
            self.times = 1
            return super().handle_mm_fault(mm, vma, va, flags)

    mm = anonymous(1, faults=Endless(1))
    with pytest.raises(gpuhmm.HmmTimeoutError) as caught:
        gpuhmm.range_fault(mm, BASE, BASE + 4096, request="read", timeout_ms=20, backend=backend)
    assert isinstance(caught.value, TimeoutError)


class Slow(Invalidating):
    """Takes 30 ms for each fault, and may say that they went into compiling."""

    def __init__(self, times, compiling):
        super().__init__(times)
        self.compiling = compiling

    def handle_mm_fault(self, mm, vma, va, flags):
        time.sleep(0.03)
        if self.compiling:
            COMPILING.seconds += 0.03
        return super().handle_mm_fault(mm, vma, va, flags)


def ask_one_page(handler, timeout_ms, backend):
    mm = anonymous(1, faults=handler)
    return gpuhmm.range_fault(
        mm, BASE, BASE + 4096, request="read", timeout_ms=timeout_ms, backend=backend
    ).tries


def test_the_time_begins_after_the_first_try(backend):
    assert ask_one_page(Slow(1, compiling=False), 1, backend) == 2
    with pytest.raises(gpuhmm.HmmTimeoutError):
        ask_one_page(Slow(4, compiling=False), 1, backend)


def test_what_is_compiled_meanwhile_does_not_count(backend):
    assert ask_one_page(Slow(4, compiling=True), 25, backend) == 5


FRESH = """
import gpuhmm, gpuhmm.memory
from gpuhmm.shared import COMPILING
base, end = 1 << 30, (1 << 30) + (8 << 12)
mm = gpuhmm.AddressSpace(kernel="v6.1")
mm.mmap(base, end)
for va in range(base, end, 4096):
    gpuhmm.memory.store(mm, va, 1)
child = gpuhmm.memory.fork(mm)
seen = gpuhmm.range_fault(mm, base, end, request="write", timeout_ms=1000, backend="cpu")
assert seen.writable.all() and seen.tries > 1, seen
print(COMPILING.seconds)
"""


def test_a_first_call_that_compiles_does_not_time_out(tmp_path):
    environment = {**os.environ, "GPUHMM_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FRESH], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 1  # longer than the timeout: it would be up without a word


@pytest.mark.parametrize("arguments", [{"request": "exec"}, {"timeout_ms": 0}, {"backend": "tpu"}])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="must be"):
        gpuhmm.range_fault(anonymous(1), BASE, BASE + 4096, **arguments)
