"""A back end with one mistake: it takes a read-only page of the zero PFN for a writable one."""

from gpuhmm.hmm.words import HMM_PFN_FLAGS, HMM_PFN_VALID, HMM_PFN_WRITE
from gpuhmm.kernels import reference


class BrokenWalk(reference.HmmWalk):
    def hmm_range_fault(self):
        ret = super().hmm_range_fault()
        words = self.range.hmm_pfns
        zero = ((words & ~HMM_PFN_FLAGS) == self.mm.zero_pfn) & ((words & HMM_PFN_VALID) != 0)
        words[zero] |= HMM_PFN_WRITE
        return ret


def resolver(range_):
    return BrokenWalk(range_, range_.hmm_pfns)
