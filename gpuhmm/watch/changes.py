"""Two captures of one process, compared page by page."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuhmm.capture import Capture
from gpuhmm.hmm.backends import BackendInfo
from gpuhmm.translation import translate
from gpuhmm.watch.page_change import Change, page_changes

#: Neighbouring pages with the same change: address in bytes, pages of 4 KiB, a :class:`Change`.
CHANGE_DTYPE = np.dtype([("va", np.uint64), ("npages", np.uint64), ("change", np.uint8)])


@dataclass(frozen=True)
class Changes:
    """What changed from one capture to the next; ``backend`` translated the pages of both.

    ``runs`` is ``CHANGE_DTYPE``[n] by address.  ``new_mappings`` and ``gone_mappings`` count areas that only
    one capture has.  ``moves_known`` is false where PFNs are not real: nothing can be said to have moved.
    """

    runs: npt.NDArray[np.void]
    new_mappings: int
    gone_mappings: int
    moves_known: bool
    pages_compared: int
    seconds: float
    backend: BackendInfo

    def counts(self) -> dict[str, int]:
        """Return pages of 4 KiB by the name of their change, in small letters."""
        pages = np.bincount(self.runs["change"], weights=self.runs["npages"], minlength=len(Change))
        return {change.name.lower(): int(pages[change]) for change in Change if change is not Change.NONE}


def compare(before: Capture, after: Capture, *, backend: str = "auto") -> Changes:
    """Return what changed between two captures: pages mapped, unmapped, moved, split, collapsed, swapped.

    Only windows that one of them populates are looked at; ``backend`` is what translates their pages.
    Without real PFNs a page that moved is not told from one that stayed.
    """
    begun = time.perf_counter()
    windows = np.union1d(before.windows, after.windows).astype(np.uint64)
    pages = np.arange(512, dtype=np.uint64) << np.uint64(12)
    vas = ((windows << np.uint64(21))[:, None] + pages).reshape(-1)
    old_pages, new_pages = (translate(one.space, vas, backend=backend) for one in (before, after))
    changes = page_changes(old_pages.words, new_pages.words)
    known = before.pfns_real and after.pfns_real
    if not known:
        changes[changes == Change.MOVED] = Change.NONE
    old, new = ({mapping.header for mapping in capture.mappings} for capture in (before, after))
    return Changes(
        runs=_runs(vas, changes),
        new_mappings=len(new - old),
        gone_mappings=len(old - new),
        moves_known=known,
        pages_compared=len(vas),
        seconds=time.perf_counter() - begun,
        backend=new_pages.backend,
    )


def _runs(vas: npt.NDArray[np.uint64], changes: npt.NDArray[np.uint8]) -> npt.NDArray[np.void]:
    """Return neighbours with the same change as runs; pages without one are left out."""
    changed = np.flatnonzero(changes)
    if not len(changed):
        return np.empty(0, dtype=CHANGE_DTYPE)
    at, kind = vas[changed], changes[changed]
    cut = (at[1:] != at[:-1] + np.uint64(4096)) | (kind[1:] != kind[:-1])
    first = np.concatenate(([0], np.flatnonzero(cut) + 1))
    runs = np.empty(len(first), dtype=CHANGE_DTYPE)
    runs["va"] = at[first]
    runs["npages"] = np.diff(np.concatenate((first, [len(at)])))
    runs["change"] = kind[first]
    return runs
