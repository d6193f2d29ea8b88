"""Replay whole files of recordings and count how many calls the model reproduces."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from gpuhmm.check.recorded import loops
from gpuhmm.check.recorded.call import RecordedCall
from gpuhmm.check.recorded.compare import compare
from gpuhmm.check.recorded.replay import replay

#: Calls that one process replays at a time.
_CHUNK = 64


@dataclass(frozen=True)
class LoopDifference:
    """The first call of a family that differs in a point: which point, how often, and how."""

    point: str
    scenario: str
    cases: int
    case: str
    words: str


@dataclass(frozen=True)
class FamilyCount:
    """One file of recordings in numbers.

    ``identical`` calls needed nothing that the page tables before them do not show; ``with_facts`` are
    identical given facts that were taken from the outcome by a named rule; ``facts`` counts calls by rule.
    """

    family: str
    cases: int
    identical: int
    with_facts: int
    different: int
    faults: int
    seconds: float
    facts: dict[str, int]
    differences: list[LoopDifference] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    """One call: ``facts`` are the names of the rules that gave it something, ``found`` what differs."""

    case: str
    scenario: str
    faults: int
    facts: list[str]
    found: list[tuple[str, str]]


def check_family(path: Path, backend: str, jobs: int | None = None) -> FamilyCount:
    """Replay every call of one file; ``jobs`` processes, as many as there are CPUs without it."""
    started = time.monotonic()
    total = len(loops.load(path))
    jobs = min(jobs or len(os.sched_getaffinity(0)), -(-total // _CHUNK))
    verdicts = list(_verdicts(path, backend, total, jobs))
    facts: Counter[str] = Counter()
    kinds: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        facts.update(verdict.facts)
        if verdict.found:
            kinds.setdefault((verdict.found[0][0], verdict.scenario), []).append(verdict)
    different = sum(bool(verdict.found) for verdict in verdicts)
    plain = sum(not verdict.found and not verdict.facts for verdict in verdicts)
    return FamilyCount(
        family=path.stem,
        cases=total,
        identical=plain,
        with_facts=total - plain - different,
        different=different,
        faults=sum(verdict.faults for verdict in verdicts),
        seconds=round(time.monotonic() - started, 3),
        facts=dict(sorted(facts.items())),
        differences=[
            LoopDifference(point, scenario, len(group), group[0].case, group[0].found[0][1])
            for (point, scenario), group in kinds.items()
        ],
    )


def _verdicts(path: Path, backend: str, total: int, jobs: int) -> Iterator[Verdict]:
    pieces = [(path, backend, first, min(first + _CHUNK, total)) for first in range(0, total, _CHUNK)]
    if jobs <= 1:
        for piece in pieces:
            yield from _check_piece(piece)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for verdicts in pool.map(_check_piece, pieces):
            yield from verdicts


@cache
def _loaded(path: Path) -> loops.LoopFile:
    return loops.load(path)


def _check_piece(piece: tuple[Path, str, int, int]) -> list[Verdict]:
    path, backend, first, past = piece
    return [check_call(RecordedCall(_loaded(path), index), backend) for index in range(first, past)]


def check_call(call: RecordedCall, backend: str) -> Verdict:
    """Replay one call on ``backend`` and compare it with the recording.

    Whatever the replay raises is a difference, in the point ``exception``.
    """
    scenario = str(call.file.arrays["scenario"][call.index])
    try:
        replayed = replay(call, backend)
        found = compare(call, replayed)
        facts = [fact.__name__ for fact in replayed.facts]
    except Exception as error:  # the model broke: that is the finding
        found, facts = [("exception", f"model {type(error).__name__}: {error}")], []
    return Verdict(call.name, scenario, len(call.faults), facts, found)


def loop_files(paths: list[Path]) -> list[Path]:
    """Return the files of recordings among ``paths`` and in folders of them; ValueError if there are none."""
    files = sorted(file for path in paths for file in (path.glob("*.npz") if path.is_dir() else [path]))
    if not files:
        raise ValueError(f"no .npz file is in {', '.join(map(str, paths))}")
    for file in files:
        loops.load(file)
    return files
