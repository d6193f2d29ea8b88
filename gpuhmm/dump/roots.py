"""Top tables of Linux in an image, for who does not know CR3: found by what every one of them holds.

The rule.  A page is a candidate if

1. each of its entries that is not 0 is present, has PSE clear (reserved at that level) and points into
   the image;
2. the kernel's text is mapped where Linux maps it, at 0xffffffff80000000: entry 511, with five levels
   entry 511 of the table behind it as well, leads to a table whose entry 510 leads to a table with at
   least one present entry.

Source: Documentation/arch/x86/x86_64/mm.rst (v6.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.image import MemorySource, as_source
from gpuhmm.mm.tables import Words
from gpuhmm.mm.x86 import PAGE_PRESENT, PAGE_PSE, PTE_PFN_MASK, U64

#: One candidate: CR3, levels, and entries of the top table in the user and the kernel half.
ROOT_DTYPE = np.dtype([("cr3", np.uint64), ("levels", np.uint8), ("user", np.uint16), ("kernel", np.uint16)])

_TABLE = PAGE_PRESENT | PAGE_PSE
_TEXT_SLOT = 510
_LAST_SLOT = 511


def find_roots(source: Any, *, levels: int | None = None) -> npt.NDArray[np.void]:
    """Return every candidate for CR3 in an image, ``ROOT_DTYPE``[n], by address.

    ``source`` is a path or physical memory that can be scanned, ``levels`` 4 or 5 where that is known,
    else what the image says, else both are tried.  Candidates with ``user`` 0 belong to the kernel
    alone.  The image is read once, 16 MiB at a time.
    """
    memory = as_source(source)
    wanted = levels or memory.levels
    if wanted not in (None, 4, 5):
        raise ValueError(f"levels must be 4 or 5 (got {wanted})")
    found = []
    for first, pages in memory.scan():
        last = pages[:, _LAST_SLOT]
        likely = np.flatnonzero((last & _TABLE) == PAGE_PRESENT)
        rows = likely[_points_inside(memory, pages[likely])]
        for row in rows.tolist():
            for tried in (4, 5) if wanted is None else (wanted,):
                if _maps_text(memory, pages[row], tried):
                    used = pages[row] != 0
                    found.append((first + row << 12, tried, int(used[:256].sum()), int(used[256:].sum())))
    return np.array(sorted(found), dtype=ROOT_DTYPE)


def _points_inside(memory: MemorySource, pages: Words) -> npt.NDArray[np.bool_]:
    """Return which tables follow rule 1."""
    used = pages != 0
    fine: npt.NDArray[np.bool_] = (((pages & _TABLE) == PAGE_PRESENT) | ~used).all(axis=1)
    rows, slots = np.nonzero(used & fine[:, None])
    inside = memory.contains(pages[rows, slots] & PTE_PFN_MASK)
    if inside is not None:
        fine[rows[~inside]] = False
    return fine


def _maps_text(memory: MemorySource, root: Words, levels: int) -> bool:
    """Return whether rule 2 holds."""
    page = root
    for slot in (_LAST_SLOT,) * (levels - 3) + (_TEXT_SLOT,):
        entry = page[slot]
        if (entry & _TABLE) != PAGE_PRESENT:
            return False
        pages, there = memory.read_pages(((entry & PTE_PFN_MASK) >> U64(12))[None])
        if not there[0]:
            return False
        page = pages[0]
    return bool((page & PAGE_PRESENT).any())
