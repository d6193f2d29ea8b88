"""Comparing captures page by page, to judge the other back ends."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuhmm.mm.tables import Words
from gpuhmm.translation import reference
from gpuhmm.translation.source import Tables
from gpuhmm.watch.page_change import Change


def changes_of(before: Tables, after: Tables, vas: Words) -> npt.NDArray[np.uint8]:
    """Return uint8[n], a Change for each page, of the pages at ``vas`` in two sets of tables."""
    changes = np.empty(len(vas), dtype=np.uint8)
    for i, va in enumerate(vas.tolist()):
        old, new = (_state(reference.translate_va(tables, va)) for tables in (before, after))
        changes[i] = _change(old, new)
    return changes


def _state(word: int) -> tuple[str, int, int]:
    """Return how a page is there, its level and its address."""
    reason = word >> 56 & 7
    how = "here" if reason in (reference.MAPPED, reference.PROTNONE) else "gone"
    if reason == reference.NOT_PRESENT:
        how = "swapped"
    return how, word >> 52 & 7, word & (1 << 52) - 1


def _change(old: tuple[str, int, int], new: tuple[str, int, int]) -> Change:
    if old[0] == new[0] == "here":
        if old[1] != new[1]:
            return Change.SPLIT if new[1] < old[1] else Change.COLLAPSED
        return Change.MOVED if old[2] != new[2] else Change.NONE
    return {
        ("gone", "here"): Change.MAPPED,
        ("swapped", "here"): Change.SWAPPED_IN,
        ("here", "gone"): Change.UNMAPPED,
        ("here", "swapped"): Change.SWAPPED_OUT,
    }.get((old[0], new[0]), Change.NONE)
