"""Run one case on one back end and keep everything that it left behind."""

from __future__ import annotations

import numpy as np

from gpuhmm.check.case import Case, Outcome
from gpuhmm.check.fault_script import (
    CallDiffersError,
    ImprovisedFaults,
    JournaledSpace,
    JournalingFaults,
    ScriptedFaults,
)
from gpuhmm.hmm.backends import hmm_range_fault
from gpuhmm.hmm.ranges import HmmRange


def replay(case: Case, backend: str, improvise: bool = False) -> Outcome:
    """Return what ``backend`` makes of ``case``.

    Faults go as recorded, or where there is no record (or with ``improvise``) as the case's seed
    says.  An exception of the back end is an outcome as well: its words are in ``error``.
    """
    faults: JournalingFaults
    if case.recorded is None or improvise:
        faults = ImprovisedFaults(case.fault_seed, case.invalidate_after)
    else:
        faults = ScriptedFaults(case.recorded, case.invalidate_after)
    mm = case.space(faults, JournaledSpace)
    assert isinstance(mm, JournaledSpace)
    notifier = mm.notifier(case.start, max(case.end, case.start + 1))
    range_ = HmmRange(
        notifier,
        case.start,
        case.end,
        case.hmm_pfns_in.copy(),
        notifier_seq=notifier.read_begin(),
        default_flags=case.default_flags,
        pfn_flags_mask=case.pfn_flags_mask,
        dev_private_owner=case.dev_private_owner,
    )
    faults.watch(notifier)
    ret, error = 0, ""
    try:
        ret = hmm_range_fault(range_, backend=backend)
    except CallDiffersError:
        error = "stopped at a call that was not expected"
    except Exception as caught:  # whatever a broken back end raises is the finding
        error = type(caught).__name__
    events, writes = mm.journal()
    pfns, pages = mm.tables()
    order = np.argsort(pfns)
    return Outcome(
        ret=ret,
        walks=range_.stats.walks,
        hmm_pfns=np.asarray(range_.hmm_pfns),
        events=events,
        writes=writes,
        table_pfns=pfns[order],
        tables=pages[order],
        error=error,
    )


def recorded_outcome(case: Case) -> Outcome:
    """Return the record of ``case`` with the page tables that its writes lead to."""
    assert case.recorded is not None
    pfns, pages = case.final_tables()
    order = np.argsort(pfns)
    recorded = case.recorded
    return Outcome(
        ret=recorded.ret,
        walks=recorded.walks,
        hmm_pfns=recorded.hmm_pfns,
        events=recorded.events,
        writes=recorded.writes,
        table_pfns=pfns[order],
        tables=pages[order],
    )
