"""Many cases on two back ends, and what to keep of those that differ."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from gpuhmm.check import vectors
from gpuhmm.check.case import Case, Outcome
from gpuhmm.check.difference import differences
from gpuhmm.check.random_case import random_case
from gpuhmm.check.replay import recorded_outcome, replay
from gpuhmm.check.shrink import shrink

#: More differing cases than these are counted, not kept.
MAX_SAVED = 20


@dataclass(frozen=True)
class Finding:
    """A case in which two outcomes differ: in what, and the file that replays it ('' if none)."""

    case: str
    differences: list[str]
    saved: str


@dataclass
class Campaign:
    """Compares ``backend`` with ``against``; saves what differs under ``save``.

    Cases of more than ``max_pages`` pages are left out and counted in ``left_out``.  Random cases are of
    ``kernel``, or each of any.
    """

    backend: str
    against: str
    save: Path
    max_pages: int = 1 << 30
    kernel: str | None = None
    checked: int = 0
    left_out: int = 0
    different: int = 0
    findings: list[Finding] = field(default_factory=list)

    def check_recorded(self, case: Case) -> None:
        """Compare both back ends with what is recorded."""
        if case.npages > self.max_pages:
            self.left_out += 1
            return
        self.checked += 1
        record = recorded_outcome(case)
        found = []
        for name in dict.fromkeys((self.backend, self.against)):
            found += differences(case, "the record", record, name, replay(case, name))
        if found:
            if self._differ(case):
                self._keep(shrink(replace(case, recorded=None), self._differ), found)
            else:
                self._keep(case, found)

    def check_random(self, seed: int) -> None:
        """Compare the back ends with each other in the random case of that seed."""
        case = random_case(Random(seed), f"random case {seed}", min(self.max_pages, 1 << 19), self.kernel)
        self.checked += 1
        found = self._compare(case)
        if found:
            small = shrink(case, self._differ)
            self._keep(small, self._compare(small))

    def _compare(self, case: Case) -> list[str]:
        against = replay(case, self.against, improvise=True)
        backend = replay(case, self.backend, improvise=True)
        return differences(case, self.against, against, self.backend, backend)

    def _differ(self, case: Case) -> bool:
        return bool(self._compare(case))

    def _keep(self, case: Case, found: list[str]) -> None:
        self.different += 1
        if self.different > MAX_SAVED:
            return
        if case.recorded is None:
            case = replace(case, recorded=_record(replay(case, self.against)))
        target = self.save / f"difference-{self.backend}-{self.different}.npz"
        vectors.save(target, [case])
        self.findings.append(Finding(case.name, found, str(target)))


def _record(outcome: Outcome) -> Outcome:
    """Return an outcome as it is written to a file: without the page tables, which its writes give."""
    return replace(outcome, table_pfns=None, tables=None)


def case_files(paths: list[Path]) -> tuple[list[vectors.VectorFile], list[Path]]:
    """Return the case files among ``paths`` and in folders there, and the .npz files of another kind.

    ValueError for a file that is named itself and holds no cases.
    """
    files, others = [], []
    for path in paths:
        if not path.is_dir():
            files.append(vectors.load(path))
            continue
        for inside in sorted(path.rglob("*.npz")):
            try:
                files.append(vectors.load(inside))
            except ValueError:
                others.append(inside)
    return files, others
