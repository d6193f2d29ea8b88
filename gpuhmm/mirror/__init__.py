"""The driver of a device that mirrors an address space, after the kernel's own test driver.

Source: lib/test_hmm.c (v6.1).
"""

from gpuhmm.mirror.coherence import MirrorCounters
from gpuhmm.mirror.device import DeviceMirror, MirrorResult
from gpuhmm.mirror.page_table import DPT_ATOMIC, DPT_PFN, DPT_VALID, DPT_WRITE, DevicePageTable
from gpuhmm.mirror.protection import (
    HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL,
    HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE,
    HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL,
    HMM_DMIRROR_PROT_DEV_PRIVATE_REMOTE,
    HMM_DMIRROR_PROT_ERROR,
    HMM_DMIRROR_PROT_NONE,
    HMM_DMIRROR_PROT_PMD,
    HMM_DMIRROR_PROT_PUD,
    HMM_DMIRROR_PROT_READ,
    HMM_DMIRROR_PROT_WRITE,
    HMM_DMIRROR_PROT_ZERO,
)

__all__ = [
    "DPT_ATOMIC",
    "DPT_PFN",
    "DPT_VALID",
    "DPT_WRITE",
    "HMM_DMIRROR_PROT_DEV_COHERENT_LOCAL",
    "HMM_DMIRROR_PROT_DEV_COHERENT_REMOTE",
    "HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL",
    "HMM_DMIRROR_PROT_DEV_PRIVATE_REMOTE",
    "HMM_DMIRROR_PROT_ERROR",
    "HMM_DMIRROR_PROT_NONE",
    "HMM_DMIRROR_PROT_PMD",
    "HMM_DMIRROR_PROT_PUD",
    "HMM_DMIRROR_PROT_READ",
    "HMM_DMIRROR_PROT_WRITE",
    "HMM_DMIRROR_PROT_ZERO",
    "DeviceMirror",
    "DevicePageTable",
    "MirrorCounters",
    "MirrorResult",
]
