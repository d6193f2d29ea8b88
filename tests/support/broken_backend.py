"""A back end with one mistake: it takes a read-only page of the zero PFN for a writable one."""

from gpuhmm.hmm.words import HMM_PFN_FLAGS, HMM_PFN_VALID, HMM_PFN_WRITE
from gpuhmm.kernels import reference


def hmm_range_fault(range_):
    ret = reference.hmm_range_fault(range_)
    words = range_.hmm_pfns
    zero = ((words & ~HMM_PFN_FLAGS) == range_.notifier.mm.zero_pfn) & ((words & HMM_PFN_VALID) != 0)
    words[zero] |= HMM_PFN_WRITE
    return ret
