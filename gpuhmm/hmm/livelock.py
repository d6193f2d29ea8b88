"""A guard against faults that succeed without ever changing anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuhmm.errors import LivelockError

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

#: Restarts at one address, with the page tables untouched in between, that are taken for a livelock.
MAX_FUTILE_RESTARTS = 1000


class LivelockGuard:
    """Counts restarts that found everything as it was.

    The kernel's loop is unbounded: a handler that reports success and maps nothing keeps it
    spinning.  A library must not hang, so it gives up after ``MAX_FUTILE_RESTARTS``.
    """

    def __init__(self, mm: AddressSpace) -> None:
        self._tables = mm.page_tables
        self._seen = (-1, -1)
        self._futile = 0

    def restarting_at(self, va: int) -> None:
        """Note a restart at ``va``.  LivelockError if it was one too many."""
        now = (va, self._tables.clock)
        self._futile = self._futile + 1 if now == self._seen else 0
        self._seen = now
        if self._futile >= MAX_FUTILE_RESTARTS:
            raise LivelockError(
                f"faults at va {va:#x} succeeded {self._futile} times without changing a page table: "
                "the kernel would loop for ever; the fault handler must map the page or return an error"
            )
