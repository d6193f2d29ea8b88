"""The order in which UVM services a batch, which faults it then takes for duplicates, and its VA blocks.

Source: uvm_gpu_replayable_faults.c:preprocess_fault_batch, cmp_sort_fault_entry_by_*,
check_fault_entry_duplicate, update_batch_and_notify_fault, service_fault_batch (NVIDIA UVM 595.45.04).

The driver sorts by instance pointer first if there is more than one, to look each up once.  Here a space
has one, and the second sort alone decides: space, address, access from the most to the least intrusive.
It orders spaces by where their structures lie, here by their number.  Linux's sort() is a heapsort,
which leaves equal entries in any order; here they keep that of the buffer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpuhmm.coalesce.areas import BLOCK_SHIFT
from gpuhmm.coalesce.drivers.uvm.fetch import FetchedEntry


@dataclass(frozen=True, slots=True)
class SortedEntry:
    """A representative in its place; ``duplicate`` if the entry before it has the same space and page."""

    entry: FetchedEntry
    duplicate: bool


def sort_representatives(entries: Iterable[FetchedEntry]) -> list[SortedEntry]:
    """Return representatives, given in the order of the buffer, in the order of service."""
    ordered = sorted(entries, key=lambda entry: (entry.space, entry.va, -entry.access))
    before: Sequence[FetchedEntry | None] = [None, *ordered]
    return [
        SortedEntry(entry, last is not None and (last.space, last.va) == (entry.space, entry.va))
        for entry, last in zip(ordered, before, strict=False)
    ]


def count_duplicates(ordered: Iterable[SortedEntry]) -> int:
    """Return num_duplicate_faults of a batch: all instances of a duplicate, all but one of the others.

    Instances that were merged with a filtered entry are missing, as in the driver.
    """
    return sum(item.entry.instances - (not item.duplicate) for item in ordered)


def group_by_window(
    ordered: Iterable[SortedEntry], window: int = 1 << BLOCK_SHIFT
) -> list[list[SortedEntry]]:
    """Return the entries of each aligned window of ``window`` bytes together; a VA block is 2 MiB."""
    groups: list[list[SortedEntry]] = []
    last: tuple[int, int] | None = None
    for item in ordered:
        place = (item.entry.space, item.entry.va // window)
        if place != last:
            groups.append([])
            last = place
        groups[-1].append(item)
    return groups
