"""A batch gives what the calls one after the other give."""

import random

import numpy as np
import pytest
from batch_against_calls import batch_and_calls
from spaces import BASE, RW, anonymous

import gpuhmm

BACKENDS = ["reference", "cpu"]
FAULT = int(gpuhmm.HMM_PFN_REQ_FAULT)
WRITE = FAULT | int(gpuhmm.HMM_PFN_REQ_WRITE)


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("columns", [False, True])
def test_random_batches(backend, columns):
    for seed in range(200):
        batch_and_calls(random.Random(seed), backend, columns)


def test_many_small_ranges_of_which_some_fault(backend):
    mm = anonymous(640)
    mm.map_pfns(BASE, np.arange(7, 7 + 320, dtype=np.uint64))
    starts = BASE + np.arange(10, dtype=np.uint64) * np.uint64(64 * 4096)
    notifier = mm.notifier(BASE, BASE + 640 * 4096)
    batch = gpuhmm.HmmRangeBatch(
        notifier,
        starts,
        starts + np.uint64(64 * 4096),
        np.zeros(640, dtype=np.uint64),
        notifier_seq=notifier.read_begin(),
        default_flags=WRITE,
    )
    assert gpuhmm.hmm_range_fault_batch(batch, backend) == [0] * 10
    assert (batch.hmm_pfns & gpuhmm.HMM_PFN_WRITE).all()
    assert batch.stats.faults == 320
    assert batch.stats.walks == 15


def test_spaces_notifiers_and_requests_may_differ(backend):
    spaces = [anonymous(8), anonymous(8)]
    ranges = []
    for i, mm in enumerate([spaces[0], spaces[0], spaces[1], spaces[0]]):
        notifier = mm.notifier(BASE, BASE + 8 * 4096)
        ranges.append(
            gpuhmm.HmmRange(
                notifier,
                BASE,
                BASE + 8 * 4096,
                np.zeros(8, dtype=np.uint64),
                notifier_seq=notifier.read_begin(),
                default_flags=FAULT if i else 0,
            )
        )
    ranges[3].notifier_seq += 2
    assert gpuhmm.hmm_range_fault_batch(ranges, backend) == [0, 0, 0, -16]
    assert not ranges[0].hmm_pfns.any()
    assert (ranges[1].hmm_pfns & gpuhmm.HMM_PFN_VALID).all()
    assert (ranges[2].hmm_pfns & gpuhmm.HMM_PFN_VALID).all()
    assert [range_.stats.walks for range_ in ranges] == [1, 2, 2, 1]


def test_empty_batches_and_ranges(backend):
    mm = anonymous(8)
    notifier = mm.notifier(BASE, BASE + 8 * 4096)
    none = np.empty(0, dtype=np.uint64)
    assert gpuhmm.hmm_range_fault_batch([], backend) == []
    assert (
        gpuhmm.hmm_range_fault_batch(gpuhmm.HmmRangeBatch(notifier, none, none, none.copy()), backend) == []
    )
    starts = np.array([BASE, BASE], dtype=np.uint64)
    ends = np.array([BASE, BASE + 4096], dtype=np.uint64)
    seq = notifier.read_begin()
    batch = gpuhmm.HmmRangeBatch(notifier, starts, ends, np.zeros(1, dtype=np.uint64), notifier_seq=seq)
    assert gpuhmm.hmm_range_fault_batch(batch, backend) == [-22, 0]


def test_bad_batches():
    mm = gpuhmm.AddressSpace()
    mm.mmap(BASE, BASE + 8 * 4096, RW)
    notifier = mm.notifier(BASE, BASE + 8 * 4096)
    one = np.array([BASE], dtype=np.uint64)
    words = np.zeros(1, dtype=np.uint64)
    with pytest.raises(ValueError, match="start of range 0 must not lie above"):
        gpuhmm.HmmRangeBatch(notifier, one + np.uint64(4096), one, words)
    with pytest.raises(ValueError, match="of range 0 must be page aligned"):
        gpuhmm.HmmRangeBatch(notifier, one + np.uint64(1), one + np.uint64(4096), words)
    with pytest.raises(ValueError, match="hmm_pfns must have the shape"):
        gpuhmm.HmmRangeBatch(notifier, one, one + np.uint64(8192), words)
    with pytest.raises(TypeError, match="starts must be a numpy array of uint64"):
        gpuhmm.HmmRangeBatch(notifier, [BASE], one, words)
    with pytest.raises(ValueError, match="backend must be"):
        gpuhmm.hmm_range_fault_batch([], "gpu")
