"""What a device wanted to do with a page when it faulted, by rising intrusiveness.

Source: uvm_fault_access_type_t of the NVIDIA UVM driver, 595.45.04.
"""

from __future__ import annotations

from gpuhmm.hmm import HMM_PFN_REQ_FAULT, HMM_PFN_REQ_WRITE
from gpuhmm.mirror.page_table import DPT_VALID, DPT_WRITE

ACCESS_PREFETCH = 0
ACCESS_READ = 1
ACCESS_WRITE = 2
ACCESS_ATOMIC_WEAK = 3
ACCESS_ATOMIC_STRONG = 4

#: The name of each access, by its number.
ACCESS_NAMES = ("prefetch", "read", "write", "atomic_weak", "atomic_strong")

#: The entry bits that let each access through, by its number (``gpuhmm.mirror.page_table``).
ACCESS_NEEDS = (DPT_VALID, DPT_VALID, *(DPT_VALID | DPT_WRITE,) * 3)

#: The HMM_PFN_REQ_* bits that ask for a page as each access needs it, by its number.
ACCESS_REQUESTS = (
    int(HMM_PFN_REQ_FAULT),
    int(HMM_PFN_REQ_FAULT),
    *(int(HMM_PFN_REQ_FAULT | HMM_PFN_REQ_WRITE),) * 3,
)


def access_number(name: str) -> int:
    """Return the number of an access; ``atomic`` is the strong one.  ValueError for other names."""
    if name == "atomic":
        return ACCESS_ATOMIC_STRONG
    if name not in ACCESS_NAMES:
        raise ValueError(f"an access must be one of {', '.join(ACCESS_NAMES)}, atomic (got {name!r})")
    return ACCESS_NAMES.index(name)
