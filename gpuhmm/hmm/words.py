"""HMM_PFN words and the rule that decides whether a page must be faulted.

Layout of a word (v5.8 to v6.15): bits 0..55 PFN, 56..60 order of the CPU mapping, 61 ERROR,
62 WRITE (REQ_WRITE as input), 63 VALID (REQ_FAULT as input).

Source: include/linux/hmm.h, mm/hmm.c:hmm_pte_need_fault (v5.18).
"""

from __future__ import annotations

import numpy as np

from gpuhmm.shared import shared

HMM_PFN_VALID = np.uint64(1 << 63)
HMM_PFN_WRITE = np.uint64(1 << 62)
HMM_PFN_ERROR = np.uint64(1 << 61)
HMM_PFN_REQ_FAULT = HMM_PFN_VALID
HMM_PFN_REQ_WRITE = HMM_PFN_WRITE
HMM_PFN_ORDER_SHIFT = np.uint64(56)
HMM_PFN_ORDER_MASK = np.uint64(0x1F)
HMM_PFN_FLAGS = np.uint64(0xFF << 56)

HMM_NEED_FAULT = np.uint64(1)
HMM_NEED_WRITE_FAULT = np.uint64(2)
HMM_NEED_ALL_BITS = HMM_NEED_FAULT | HMM_NEED_WRITE_FAULT

_ZERO = np.uint64(0)


@shared("uint64(uint64, uint64, uint64, uint64)")
def hmm_pte_need_fault(
    pfn_req_flags: np.uint64, cpu_flags: np.uint64, default_flags: np.uint64, pfn_flags_mask: np.uint64
) -> np.uint64:
    """Return the HMM_NEED_* bits of one page: its request against what the CPU page table grants.

    Source: mm/hmm.c:hmm_pte_need_fault (v5.18).
    """
    request = (pfn_req_flags & pfn_flags_mask) | default_flags
    if (request & HMM_PFN_REQ_FAULT) == _ZERO:
        return _ZERO
    if (request & HMM_PFN_REQ_WRITE) != _ZERO and (cpu_flags & HMM_PFN_WRITE) == _ZERO:
        return HMM_NEED_ALL_BITS
    if (cpu_flags & HMM_PFN_VALID) == _ZERO:
        return HMM_NEED_FAULT
    return _ZERO


def hmm_pfn_to_order(hmm_pfns: np.ndarray) -> np.ndarray:
    """Return the order of the CPU mapping behind each word: uint8, shape of the input."""
    return ((hmm_pfns >> HMM_PFN_ORDER_SHIFT) & HMM_PFN_ORDER_MASK).astype(np.uint8)
