"""Linux's ``hmm_range_fault()`` for millions of pages at once, bit for bit.

Importing this package touches no GPU and compiles nothing.
"""

from gpuhmm.backends import BackendInfo, hmm_range_fault, hmm_range_fault_runs, resolve_backend
from gpuhmm.batch import HmmRangeBatch, hmm_range_fault_batch
from gpuhmm.driver import MirroredRange, MirroredRuns, range_fault, range_runs
from gpuhmm.errors import (
    BackendError,
    HmmError,
    HmmFaultError,
    HmmInvalidError,
    HmmPermissionError,
    HmmTimeoutError,
    LivelockError,
)
from gpuhmm.faults import FaultHandler
from gpuhmm.hmm import (
    HMM_PFN_ERROR,
    HMM_PFN_FLAGS,
    HMM_PFN_ORDER_MASK,
    HMM_PFN_ORDER_SHIFT,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    hmm_pfn_to_order,
)
from gpuhmm.notifier import MmuIntervalNotifier
from gpuhmm.pieces import range_fault_pieces
from gpuhmm.profile import PROFILES, KernelProfile
from gpuhmm.ranges import HmmRange, RangeStats
from gpuhmm.runs import HmmRuns, expand_runs, runs_of_words
from gpuhmm.space import AddressSpace
from gpuhmm.translation import Translation, mappings, translate, translate_range
from gpuhmm.vma import Vma

__version__ = "0.1.0"

__all__ = [
    "HMM_PFN_ERROR",
    "HMM_PFN_FLAGS",
    "HMM_PFN_ORDER_MASK",
    "HMM_PFN_ORDER_SHIFT",
    "HMM_PFN_REQ_FAULT",
    "HMM_PFN_REQ_WRITE",
    "HMM_PFN_VALID",
    "HMM_PFN_WRITE",
    "PROFILES",
    "AddressSpace",
    "BackendError",
    "BackendInfo",
    "FaultHandler",
    "HmmError",
    "HmmFaultError",
    "HmmInvalidError",
    "HmmPermissionError",
    "HmmRange",
    "HmmRangeBatch",
    "HmmRuns",
    "HmmTimeoutError",
    "KernelProfile",
    "LivelockError",
    "MirroredRange",
    "MirroredRuns",
    "MmuIntervalNotifier",
    "RangeStats",
    "Translation",
    "Vma",
    "expand_runs",
    "hmm_pfn_to_order",
    "hmm_range_fault",
    "hmm_range_fault_batch",
    "hmm_range_fault_runs",
    "mappings",
    "range_fault",
    "range_fault_pieces",
    "range_runs",
    "resolve_backend",
    "runs_of_words",
    "translate",
    "translate_range",
]
