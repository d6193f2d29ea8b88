"""Where two outcomes of one case part, in Linux's words."""

from __future__ import annotations

import errno

import numpy as np

from gpuhmm.check.case import (
    HANDLE_MM_FAULT,
    MIGRATION_ENTRY_WAIT,
    PMD_MIGRATION_ENTRY_WAIT,
    Case,
    Outcome,
)
from gpuhmm.hmm.words import (
    HMM_PFN_DMA_MAPPED,
    HMM_PFN_ERROR,
    HMM_PFN_P2PDMA,
    HMM_PFN_P2PDMA_BUS,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    word_layout,
)
from gpuhmm.mm import handler as faults
from gpuhmm.mm.profile import KernelProfile

_CALLS = {
    HANDLE_MM_FAULT: "handle_mm_fault",
    MIGRATION_ENTRY_WAIT: "migration_entry_wait",
    PMD_MIGRATION_ENTRY_WAIT: "pmd_migration_entry_wait",
}
_LEVELS = {1: "pte", 2: "pmd", 3: "pud", 4: "p4d", 5: "pgd"}


def differences(case: Case, left_name: str, left: Outcome, right_name: str, right: Outcome) -> list[str]:
    """Return one line for each thing in which the outcomes differ; none if they are identical.

    Compared are the return code, every word, every call with its flags and result, every store,
    the walks, and the page tables afterwards; where both raise, that they raise the same.
    """

    def line(what: str, of_left: str, of_right: str) -> str:
        return f"{what}: {left_name} {of_left}, {right_name} {of_right}"

    if left.error != right.error:
        return [line("outcome", left.error or "no exception", right.error or "no exception")]
    if left.error:
        return []  # what a call leaves behind when it raises is nobody's result
    found = []
    if left.ret != right.ret:
        found.append(line("return code", errno_name(left.ret), errno_name(right.ret)))
    if left.walks != right.walks:
        found.append(line("walks", str(left.walks), str(right.walks)))
    at = _first_difference(left.events[:, :4], right.events[:, :4])
    if at is not None:
        found.append(line(f"event {at}", _event(left, at), _event(right, at)))
    at = _first_difference(left.writes, right.writes)
    if at is not None:
        found.append(line(f"store {at}", _store(left, at), _store(right, at)))
    at = _first_difference(left.hmm_pfns, right.hmm_pfns)
    if at is not None:
        count = int(np.count_nonzero(left.hmm_pfns != right.hmm_pfns))
        what = f"hmm_pfns[{at}] of va {case.start + (at << 12):#x} ({count} of {case.npages} differ)"
        of_left, of_right = (hmm_pfn_words(side.hmm_pfns[at], case.kernel) for side in (left, right))
        found.append(line(what, of_left, of_right))
    found += _table_differences(left_name, left, right_name, right)
    return found


def errno_name(ret: int) -> str:
    """Return a return code as C would spell it: 0, -EFAULT, ..."""
    return f"-{errno.errorcode.get(-ret, str(-ret))}" if ret < 0 else str(ret)


def hmm_pfn_words(word: np.uint64, kernel: str | KernelProfile) -> str:
    """Return an HMM_PFN word of ``kernel`` as words."""
    layout = word_layout(kernel)
    flags = {
        "ERROR": HMM_PFN_ERROR,
        "VALID": HMM_PFN_VALID,
        "WRITE": HMM_PFN_WRITE,
        "DMA_MAPPED": HMM_PFN_DMA_MAPPED,
        "P2PDMA": HMM_PFN_P2PDMA,
        "P2PDMA_BUS": HMM_PFN_P2PDMA_BUS,
    }
    names = [name for name, bit in flags.items() if word & layout.flags & bit]
    order = int((word & layout.order) >> layout.order_shift)
    return " ".join([f"pfn {int(word & layout.pfn):#x}", *names, f"order {order}"])


def fault_flag_names(flags: int) -> str:
    """Return FAULT_FLAG_* bits by name."""
    names = {
        faults.FAULT_FLAG_REMOTE: "REMOTE",
        faults.FAULT_FLAG_WRITE: "WRITE",
        faults.FAULT_FLAG_ALLOW_RETRY: "ALLOW_RETRY",
        faults.FAULT_FLAG_KILLABLE: "KILLABLE",
    }
    return "|".join(name for bit, name in names.items() if flags & bit) or hex(flags)


def vm_fault_names(result: int) -> str:
    """Return VM_FAULT_* bits by name."""
    names = [
        name.removeprefix("VM_FAULT_")
        for name, bit in vars(faults).items()
        if name.startswith("VM_FAULT_") and name != "VM_FAULT_ERROR" and result & bit
    ]
    return "|".join(names) or str(result)


def _first_difference(left: np.ndarray, right: np.ndarray) -> int | None:
    shared = min(len(left), len(right))
    unequal = left[:shared] != right[:shared]
    rows = np.flatnonzero(unequal.any(axis=1) if unequal.ndim > 1 else unequal)
    if len(rows):
        return int(rows[0])
    return None if len(left) == len(right) else shared


def _event(outcome: Outcome, at: int) -> str:
    if at >= len(outcome.events):
        return "none"
    kind, va, flags, result, _ = outcome.events[at].tolist()
    if kind == HANDLE_MM_FAULT:
        return f"handle_mm_fault({va:#x}, {fault_flag_names(flags)}) = {vm_fault_names(result)}"
    return f"{_CALLS.get(kind, 'a store of the walk itself')}({va:#x})"


def _store(outcome: Outcome, at: int) -> str:
    if at >= len(outcome.writes):
        return "none"
    level, va, value = outcome.writes[at].tolist()
    return f"{_LEVELS[level]} of {va:#x} = {value:#x}"


def _table_differences(left_name: str, left: Outcome, right_name: str, right: Outcome) -> list[str]:
    if left.table_pfns is None or right.table_pfns is None or left.tables is None or right.tables is None:
        return []
    if not np.array_equal(left.table_pfns, right.table_pfns):
        only = np.setxor1d(left.table_pfns, right.table_pfns)
        return [f"page tables: {left_name} and {right_name} differ in table PFN {int(only[0]):#x}"]
    table, slot = np.nonzero(left.tables != right.tables)
    if not len(table):
        return []
    i, j = int(table[0]), int(slot[0])
    return [
        f"page tables ({len(table)} entries): slot {j} of table PFN {int(left.table_pfns[i]):#x} is "
        f"{int(left.tables[i, j]):#x} after {left_name}, {int(right.tables[i, j]):#x} after {right_name}"
    ]
