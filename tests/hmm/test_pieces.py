"""Ranges in pieces: the same words, valid together."""

import numpy as np
import pytest
from spaces import RW, words

import gpuhmm

GIB = 1 << 30
START = 5 * GIB - (3 << 12)


@pytest.fixture
def mm():
    mm = gpuhmm.AddressSpace()
    mm.mmap(4 * GIB, 9 * GIB, RW)
    mm.map_pfns(5 * GIB - 4 * 4096, words(9, 8, 7, 6, 5, 4))
    mm.map_pfns(6 * GIB, words(1 << 18), level=3)
    return mm


def collect(into):
    def consume(piece):
        into.append((piece.start, piece.end, piece.hmm_pfns.copy()))

    return consume


def test_pieces_give_the_words_of_one_call(mm):
    got = []
    progress = []
    tries, stats = gpuhmm.range_fault_pieces(
        mm,
        START,
        8 * GIB,
        collect(got),
        memory=2 << 20,
        backend="cpu",
        progress=lambda *pages: progress.append(pages),
    )
    assert tries == 1
    assert stats.walks == len(got) == 4
    assert [piece[:2] for piece in got] == [
        (START, 5 * GIB),
        (5 * GIB, 6 * GIB),
        (6 * GIB, 7 * GIB),
        (7 * GIB, 8 * GIB),
    ]
    whole = gpuhmm.range_fault(mm, START, 8 * GIB, backend="cpu")
    assert np.array_equal(np.concatenate([piece[2] for piece in got]), whole.hmm_pfns)
    assert progress[-1] == (len(whole.hmm_pfns), len(whole.hmm_pfns))


def test_an_invalidation_between_pieces_begins_again(mm):
    got = []

    def consume(piece):
        collect(got)(piece)
        if len(got) == 2:
            mm.munmap(4 * GIB + 4096, 5 * GIB - 4096)  # elsewhere: nothing is void
        if len(got) == 3:
            mm.munmap(5 * GIB, 5 * GIB + 4096)

    tries, _ = gpuhmm.range_fault_pieces(mm, START + 8192, 8 * GIB, consume, memory=2 << 20, backend="cpu")
    assert tries == 2
    assert len(got) == 3 + 4
    assert got[3][0] == START + 8192
    assert got[1][2][0] != got[4][2][0] == gpuhmm.HMM_PFN_ERROR


def test_a_range_that_is_never_quiet_runs_into_the_timeout(mm):
    def consume(piece):
        piece_notifier.invalidate()

    piece_notifier = mm.notifier(START, 8 * GIB)
    with pytest.raises(gpuhmm.HmmTimeoutError):
        gpuhmm.range_fault_pieces(mm, START, 8 * GIB, consume, memory=2 << 20, backend="cpu", timeout_ms=20)


def test_errors_and_bad_input(mm):
    nothing = []
    with pytest.raises(gpuhmm.HmmFaultError):
        gpuhmm.range_fault_pieces(mm, 8 * GIB, 10 * GIB, nothing.append, request="read", backend="cpu")
    with pytest.raises(ValueError, match="memory must be at least"):
        gpuhmm.range_fault_pieces(mm, START, 8 * GIB, nothing.append, memory=4096)
    with pytest.raises(ValueError, match="request must be one of"):
        gpuhmm.range_fault_pieces(mm, START, 8 * GIB, nothing.append, request="some")
    with pytest.raises(ValueError, match="page aligned"):
        gpuhmm.range_fault_pieces(mm, START + 1, 8 * GIB, nothing.append)
