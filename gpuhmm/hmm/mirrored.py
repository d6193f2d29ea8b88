"""What the driver loop gives: what a device may map of a range, as words or as runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm.ranges import RangeStats
from gpuhmm.hmm.runs import Runs, runs_of_words
from gpuhmm.hmm.words import HMM_PFN_ERROR, HMM_PFN_VALID, HMM_PFN_WRITE, hmm_pfn_to_order, word_layout
from gpuhmm.mm.profile import KernelProfile


@dataclass(frozen=True)
class MirroredRange:
    """What a device may map of ``[start, end)``.

    ``hmm_pfns`` is uint64[npages], the words as the kernel gives them; ``tries`` counts the calls
    that it took, ``stats`` adds up what they did.
    """

    start: int
    end: int
    hmm_pfns: npt.NDArray[np.uint64]
    backend: str
    tries: int
    stats: RangeStats
    #: The kernel whose words they are.
    kernel: KernelProfile

    @property
    def pfns(self) -> npt.NDArray[np.uint64]:
        """uint64[npages]: the PFN of each page, 0 where there is none."""
        return self.hmm_pfns & word_layout(self.kernel).pfn

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """bool[npages]: the device may read the page."""
        return (self.hmm_pfns & HMM_PFN_VALID) != 0

    @property
    def writable(self) -> npt.NDArray[np.bool_]:
        """bool[npages]: the device may write the page."""
        return (self.hmm_pfns & HMM_PFN_WRITE) != 0

    @property
    def error(self) -> npt.NDArray[np.bool_]:
        """bool[npages]: nothing can ever be mapped there."""
        return (self.hmm_pfns & HMM_PFN_ERROR) != 0

    @property
    def orders(self) -> npt.NDArray[np.uint8]:
        """uint8[npages]: log2 of the pages in the CPU mapping behind each page: 0, 9 or 18."""
        return hmm_pfn_to_order(self.hmm_pfns, self.kernel)

    def runs(self) -> Runs:
        """Return the maximal contiguous runs of valid pages: ``gpuhmm.hmm.runs.RUN_DTYPE``[n], by address."""
        runs = runs_of_words(self.start, self.hmm_pfns, self.kernel)
        return runs[(runs["flags"] & HMM_PFN_VALID) != 0]


@dataclass(frozen=True)
class MirroredRuns:
    """What a device may map of ``[start, end)``, as runs: ``gpuhmm.hmm.runs.RUN_DTYPE``[n], by address.

    They leave no gap: holes and errors are runs as well.
    """

    start: int
    end: int
    runs: Runs
    backend: str
    tries: int
    stats: RangeStats
    #: The kernel that walked; ``gpuhmm.expand_runs(runs, kernel)`` gives its words.
    kernel: KernelProfile
