"""HMM_PFN words and the rule that decides whether a page must be faulted.

Layout of a word: 61 ERROR, 62 WRITE (REQ_WRITE as input), 63 VALID (REQ_FAULT as input), and

* from v5.8 to v6.15 bits 0..55 PFN, 56..60 order of the CPU mapping;
* from v6.16 on bits 0..52 PFN, 53..57 order, and 58 P2PDMA_BUS, 59 P2PDMA, 60 DMA_MAPPED, which
  ``hmm_dma_map_pfn()`` sets and ``hmm_range_fault()`` keeps from its input.

:class:`gpuhmm.KernelProfile` says which: ``hmm_pfn_order_shift``, ``hmm_pfn_sticky``, ``hmm_pfn_flags``.

Source: include/linux/hmm.h, mm/hmm.c:hmm_pte_need_fault (v5.18, v6.17).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpuhmm.mm.profile import KernelProfile, kernel_profile
from gpuhmm.shared import shared

HMM_PFN_VALID = np.uint64(1 << 63)
HMM_PFN_WRITE = np.uint64(1 << 62)
HMM_PFN_ERROR = np.uint64(1 << 61)
HMM_PFN_REQ_FAULT = HMM_PFN_VALID
HMM_PFN_REQ_WRITE = HMM_PFN_WRITE
#: From v6.16 on; before, these are bits of the order.
HMM_PFN_DMA_MAPPED = np.uint64(1 << 60)
HMM_PFN_P2PDMA = np.uint64(1 << 59)
HMM_PFN_P2PDMA_BUS = np.uint64(1 << 58)
#: Those of v5.8 to v6.15; of any kernel: :func:`word_layout`.
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


class WordLayout(NamedTuple):
    """Where the parts of a word are: masks of its PFN, of its flags without the order, and of its order."""

    pfn: np.uint64
    flags: np.uint64
    order: np.uint64
    order_shift: np.uint64


def word_layout(kernel: str | KernelProfile) -> WordLayout:
    """Return the layout of the words of one kernel.  ValueError for an unknown name."""
    profile = kernel_profile(kernel)
    shift = np.uint64(profile.hmm_pfn_order_shift)
    order = HMM_PFN_ORDER_MASK << shift
    flags = np.uint64(profile.hmm_pfn_flags)
    return WordLayout(~flags, flags & ~order, order, shift)


def hmm_pfn_to_order(
    hmm_pfns: npt.NDArray[np.uint64], kernel: str | KernelProfile = "v5.18"
) -> npt.NDArray[np.uint8]:
    """Return the order of the CPU mapping behind each word: uint8, shape of the input.

    ``kernel`` gave the words: their layout changed at v6.16.  ValueError for orders other than 0, 9 (2 MiB)
    and 18 (1 GiB), which no x86-64 kernel gives: words of the other layout read as such.
    """
    layout = word_layout(kernel)
    orders = ((hmm_pfns & layout.order) >> layout.order_shift).astype(np.uint8)
    wrong = ~_IS_ORDER[orders]
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"words of {kernel_profile(kernel).name} must have order 0, 9 or 18 at bit {layout.order_shift} "
            f"(got order {orders.flat[at]} in {int(hmm_pfns.flat[at]):#x}: the layout of another kernel?)"
        )
    return orders


_IS_ORDER = np.isin(np.arange(int(HMM_PFN_ORDER_MASK) + 1), (0, 9, 18))
