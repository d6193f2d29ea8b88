"""What a snapshot says of a page, in one byte.

Source: lib/test_hmm_uapi.h, lib/test_hmm.c:dmirror_mkentry (v6.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm.words import HMM_PFN_ERROR, HMM_PFN_VALID, HMM_PFN_WRITE, hmm_pfn_to_order, word_layout
from gpuhmm.mm.tables import Words

if TYPE_CHECKING:
    from gpuhmm.memory.pages.device import DeviceMemory
    from gpuhmm.memory.space import AddressSpace

HMM_DMIRROR_PROT_NONE = 0x00
HMM_DMIRROR_PROT_READ = 0x01
HMM_DMIRROR_PROT_WRITE = 0x02
HMM_DMIRROR_PROT_PMD = 0x04
HMM_DMIRROR_PROT_PUD = 0x08
HMM_DMIRROR_PROT_ZERO = 0x10
HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL = 0x20
HMM_DMIRROR_PROT_DEV_PRIVATE_REMOTE = 0x30
HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL = 0x40
HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE = 0x50
HMM_DMIRROR_PROT_ERROR = 0xFF

#: By whether the memory is coherent, and whether it is the device's own.
_PLACE = {
    (False, True): HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL,
    (False, False): HMM_DMIRROR_PROT_DEV_PRIVATE_REMOTE,
    (True, True): HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL,
    (True, False): HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE,
}


def dmirror_mkentry(mm: AddressSpace, device: DeviceMemory, words: Words) -> npt.NDArray[np.uint8]:
    """Return HMM_DMIRROR_PROT_* bits of each HMM_PFN word, as ``device`` sees it: uint8[n].

    The huge zero page is an ordinary page to it, as in the kernel.
    """
    pfns, orders = words & word_layout(mm.kernel).pfn, hmm_pfn_to_order(words, mm.kernel)
    seen = np.where(words & HMM_PFN_WRITE, HMM_DMIRROR_PROT_WRITE, HMM_DMIRROR_PROT_READ).astype(np.uint8)
    seen[orders == 9] |= HMM_DMIRROR_PROT_PMD
    seen[orders == 18] |= HMM_DMIRROR_PROT_PUD
    seen[pfns == np.uint64(mm.zero_pfn)] |= HMM_DMIRROR_PROT_ZERO
    for other in mm.memory.devices:
        first = np.uint64(other.first_pfn)
        inside = (pfns >= first) & (pfns < first + np.uint64(other.npages))
        seen[inside] |= _PLACE[other.coherent, other is device]
    seen[(words & HMM_PFN_VALID) == 0] = HMM_DMIRROR_PROT_NONE
    seen[(words & HMM_PFN_ERROR) != 0] = HMM_DMIRROR_PROT_ERROR
    return seen
