"""Swap slots: how many page tables name each, what it holds, and which page of memory stands for it.

Source: mm/swapfile.c, mm/swap_state.c (v6.1).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: A slot is a swap type and an offset in it: ``type << SLOT_TYPE_SHIFT | offset``, Linux's swp_entry_t.
SLOT_TYPE_SHIFT = 58


def slot_of(swp_type: int, offset: int) -> int:
    """Return the slot of that type and offset."""
    return swp_type << SLOT_TYPE_SHIFT | offset


class SwapDevice:
    """All swap of a machine.

    ``nslots`` limits what :meth:`alloc` gives, None for no limit.  Slots that page tables name without
    having been allocated here are adopted when they are first used.  With ``synchronous`` a slot that one
    page table names is read straight into a page (SWP_SYNCHRONOUS_IO, as zram has it); any other goes
    through the swap cache.
    """

    def __init__(self, nslots: int | None = None, *, synchronous: bool = True) -> None:
        self.synchronous = synchronous
        self.left = nslots
        self._rows: dict[int, int] = {}
        self._next = 1  # slot 0 is the header
        self._freed: list[int] = []
        self._count: npt.NDArray[np.int32] = np.zeros(64, dtype=np.int32)
        self._content: npt.NDArray[np.uint64] = np.zeros(64, dtype=np.uint64)
        self._cache: npt.NDArray[np.uint64] = np.zeros(64, dtype=np.uint64)  # PFN + 1
        self._slot_of: dict[int, int] = {}  # the same the other way round

    def _row(self, slot: int) -> int:
        row = self._rows.get(slot)
        if row is None:
            row = self._rows[slot] = len(self._rows)
            if row == len(self._count):
                for name in ("_count", "_content", "_cache"):
                    old = getattr(self, name)
                    setattr(self, name, np.concatenate((old, np.zeros_like(old))))
        return row

    def alloc(self) -> int | None:
        """Return a slot that nobody names yet, or None: swap is full."""
        if self.left == 0:
            return None
        if self.left is not None:
            self.left -= 1
        if self._freed:
            return self._freed.pop()
        while slot_of(0, self._next) in self._rows:
            self._next += 1
        self._next += 1
        return slot_of(0, self._next - 1)

    def adopt(self, slot: int, count: int) -> None:
        """Let a slot that only page tables know have ``count`` names."""
        if not self.knows(slot) and self.cached(slot) is None:
            row = self._row(slot)
            self._count[row] = count

    def knows(self, slot: int) -> bool:
        """True for a slot that is in use."""
        return slot in self._rows and int(self._count[self._rows[slot]]) > 0

    def slots(self) -> list[int]:
        """Return all slots in use."""
        return [slot for slot, row in self._rows.items() if self._count[row] or self._cache[row]]

    def count(self, slot: int) -> int:
        """Return how many entries name the slot (swap_count, without the cache)."""
        row = self._row(slot)
        return int(self._count[row])

    def duplicate(self, slot: int) -> None:
        """Count one more entry that names the slot (swap_duplicate)."""
        row = self._row(slot)
        self._count[row] += 1

    def free(self, slot: int) -> None:
        """Count one entry less; a slot without entry and cached page is free again (swap_free).

        ValueError if no entry names it.
        """
        row = self._row(slot)
        if self._count[row] <= 0:
            raise ValueError(f"a swap slot must not be freed more often than it is named (got {slot:#x})")
        self._count[row] -= 1
        self._release(slot, row)

    def _release(self, slot: int, row: int) -> None:
        if self._count[row] or self._cache[row]:
            return
        self._freed.append(slot)
        if self.left is not None:
            self.left += 1

    def content(self, slot: int) -> int:
        """Return the word that was written out."""
        row = self._row(slot)
        return int(self._content[row])

    def write(self, slot: int, content: int) -> None:
        """Write a page out: keep its word."""
        row = self._row(slot)
        self._content[row] = content

    def cached(self, slot: int) -> int | None:
        """Return the PFN that holds the slot's page in memory, or None (lookup_swap_cache)."""
        row = self._row(slot)  # may move the arrays
        pfn = int(self._cache[row])
        return pfn - 1 if pfn else None

    def slot_of_page(self, pfn: int) -> int | None:
        """Return the slot whose cached page is ``pfn``."""
        return self._slot_of.get(pfn)

    def set_cached(self, slot: int, pfn: int | None) -> None:
        """Say which page of memory stands for the slot (add_to_swap_cache, delete_from_swap_cache)."""
        row = self._row(slot)
        before = self.cached(slot)
        if before is not None:
            del self._slot_of[before]
        self._cache[row] = 0 if pfn is None else pfn + 1
        if pfn is None:
            self._release(slot, row)
        else:
            self._slot_of[pfn] = slot
