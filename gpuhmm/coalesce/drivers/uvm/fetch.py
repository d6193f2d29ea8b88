"""What UVM merges while it fetches a batch from the fault buffer, entry by entry.

Source: uvm_gpu_replayable_faults.c:fetch_fault_buffer_entries, fetch_fault_buffer_try_merge_entry,
fetch_fault_buffer_merge_entry (NVIDIA UVM 595.45.04).  The address space stands for the instance pointer
with its subcontext.  Fatal faults, which the driver never merges, are not in traces.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpuhmm.coalesce.access import ACCESS_NAMES
from gpuhmm.coalesce.trace import FaultTrace

#: Faults that the driver fetches at once (uvm_perf_fault_batch_count).
BATCH_COUNT = 256


@dataclass(slots=True)
class FetchedEntry:
    """An entry of a batch, number ``index`` in the order of the buffer.

    ``filtered`` entries are left to their representative, found through ``merged_into``.  ``instances``
    and ``access_mask`` (bit n: access number n) count as long as the entry is not filtered.
    """

    index: int
    space: int
    va: int
    access: int
    utlb: int
    instances: int
    access_mask: int
    filtered: bool = False
    merged_into: int | None = None


class Fetch:
    """One batch while it is fetched; ``merge`` is the module parameter uvm_perf_fault_coalesce."""

    def __init__(self, merge: bool = True) -> None:
        self.merge = merge
        self.entries: list[FetchedEntry] = []
        #: Representatives so far (num_coalesced_faults).
        self.coalesced = 0
        self._last: FetchedEntry | None = None
        self._last_of_utlb: dict[int, FetchedEntry] = {}

    def add(self, space: int, va: int, access: int, utlb: int) -> FetchedEntry:
        """Fetch one more entry, merge it if the rules say so, and return it.

        An entry merges with the last fault of its µTLB if that is of the same space and page.  If not, it
        merges with the last fault of the batch if that is of the same space and page and the new access
        is no more intrusive.  In the first case a more intrusive access makes the new entry the
        representative.  The last fault of the batch stays what it was even then: entries of other
        µTLBs that merge with it add to the ``instances`` of an entry that is itself filtered, and the
        representative never learns of them.  So it is in the driver.
        """
        if not 0 <= access < len(ACCESS_NAMES):
            raise ValueError(f"access must be 0 to {len(ACCESS_NAMES) - 1} (got {access})")
        entry = FetchedEntry(len(self.entries), space, va, access, utlb, 1, 1 << access)
        self.entries.append(entry)
        if self.merge and self._merges(entry):
            return entry
        self.coalesced += 1
        self._last = self._last_of_utlb[utlb] = entry
        return entry

    def _merges(self, entry: FetchedEntry) -> bool:
        last_of_utlb = self._last_of_utlb.get(entry.utlb)
        if last_of_utlb is not None and _same_page(entry, last_of_utlb):
            if _merge(entry, last_of_utlb):
                self._last_of_utlb[entry.utlb] = entry
            return True
        last = self._last
        if last is not None and _same_page(entry, last) and entry.access <= last.access:
            _merge(entry, last)
            return True
        return False

    def representative(self, index: int) -> FetchedEntry:
        """Return the entry that stands for entry number ``index`` in the end."""
        entry = self.entries[index]
        while entry.merged_into is not None:
            entry = self.entries[entry.merged_into]
        return entry

    def representatives(self) -> list[FetchedEntry]:
        """Return the entries that are not filtered, in the order of the buffer."""
        return [entry for entry in self.entries if not entry.filtered]


def fetch(faults: FaultTrace, merge: bool = True) -> Fetch:
    """Return a batch of all the given faults, fetched in their order."""
    batch = Fetch(merge)
    columns = (faults.space, faults.va, faults.access, faults.utlb)
    for space, va, access, utlb in zip(*(column.tolist() for column in columns), strict=True):
        batch.add(space, va, access, utlb)
    return batch


def _same_page(entry: FetchedEntry, other: FetchedEntry) -> bool:
    return entry.space == other.space and entry.va == other.va


def _merge(entry: FetchedEntry, last: FetchedEntry) -> bool:
    """Merge ``entry`` with ``last``; return True if it becomes the representative of both."""
    last.instances += 1
    last.access_mask |= 1 << entry.access
    if entry.access <= last.access:
        entry.filtered = True
        entry.merged_into = last.index
        return False
    entry.access_mask = last.access_mask
    entry.instances = last.instances
    last.filtered = True
    last.merged_into = entry.index
    return True
