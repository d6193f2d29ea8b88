"""Linux's ``hmm_range_fault()`` for millions of pages at once, bit for bit.

Importing this package touches no GPU and compiles nothing.
"""

from gpuhmm.errors import (
    BackendError,
    HmmError,
    HmmFaultError,
    HmmInvalidError,
    HmmMemoryError,
    HmmPermissionError,
    HmmTimeoutError,
    LivelockError,
)
from gpuhmm.hmm.backends import BackendInfo, hmm_range_fault, hmm_range_fault_runs, resolve_backend
from gpuhmm.hmm.batch import HmmRangeBatch, hmm_range_fault_batch
from gpuhmm.hmm.loop import range_fault, range_fault_pieces, range_runs
from gpuhmm.hmm.mirrored import MirroredRange, MirroredRuns
from gpuhmm.hmm.ranges import HmmRange, RangeStats
from gpuhmm.hmm.runs import HmmRuns, expand_runs, runs_of_words
from gpuhmm.hmm.unlocked import hmm_range_fault_unlocked_timeout
from gpuhmm.hmm.words import (
    HMM_PFN_DMA_MAPPED,
    HMM_PFN_ERROR,
    HMM_PFN_FLAGS,
    HMM_PFN_ORDER_MASK,
    HMM_PFN_ORDER_SHIFT,
    HMM_PFN_P2PDMA,
    HMM_PFN_P2PDMA_BUS,
    HMM_PFN_REQ_FAULT,
    HMM_PFN_REQ_WRITE,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
    hmm_pfn_to_order,
)
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.handler import FaultHandler
from gpuhmm.mm.notifier import MmuIntervalNotifier
from gpuhmm.mm.profile import PROFILES, KernelProfile
from gpuhmm.mm.vma import Vma
from gpuhmm.moved import find_moved_modules
from gpuhmm.translation import Translation, mappings, translate, translate_range
from gpuhmm.version import __version__

find_moved_modules()

__all__ = [
    "HMM_PFN_DMA_MAPPED",
    "HMM_PFN_ERROR",
    "HMM_PFN_FLAGS",
    "HMM_PFN_ORDER_MASK",
    "HMM_PFN_ORDER_SHIFT",
    "HMM_PFN_P2PDMA",
    "HMM_PFN_P2PDMA_BUS",
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
    "HmmMemoryError",
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
    "__version__",
    "expand_runs",
    "hmm_pfn_to_order",
    "hmm_range_fault",
    "hmm_range_fault_batch",
    "hmm_range_fault_runs",
    "hmm_range_fault_unlocked_timeout",
    "mappings",
    "range_fault",
    "range_fault_pieces",
    "range_runs",
    "resolve_backend",
    "runs_of_words",
    "translate",
    "translate_range",
]
