"""What a device wanted to do with a page when it faulted, by rising intrusiveness.

Source: uvm_fault_access_type_t of the NVIDIA UVM driver, 595.45.04.
"""

from __future__ import annotations

import numpy as np

from gpuhmm.hmm.words import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE
from gpuhmm.mirror.page_table import DPT_VALID, DPT_WRITE

ACCESS_PREFETCH = 0
ACCESS_READ = 1
ACCESS_WRITE = 2
ACCESS_ATOMIC_WEAK = 3
ACCESS_ATOMIC_STRONG = 4

#: The name of each access, by its number.
ACCESS_NAMES = ("prefetch", "read", "write", "atomic_weak", "atomic_strong")

#: The entry bits that let each access through, by its number (``gpuhmm.mirror.page_table``): uint64[5].
ACCESS_NEEDS = np.array([DPT_VALID, DPT_VALID, *[DPT_VALID | DPT_WRITE] * 3], dtype=np.uint64)

#: The HMM_PFN_REQ_* bits that ask for a page as each access needs it, by its number: uint64[5].
ACCESS_REQUESTS = np.array(
    [HMM_PFN_REQ_FAULT, HMM_PFN_REQ_FAULT, *[HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE] * 3], dtype=np.uint64
)
