"""What is counted for each batch of faults, and for a whole run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass
class Batch:
    """Counts of what a driver read from the fault buffer together, and of serving it.  Times are ns."""

    start: int = 0
    end: int = 0
    #: Entries read from the buffer; what was left when the driver had merged some of them at the fetch.
    raw: int = 0
    coalesced: int = 0
    #: Different pages among them.
    unique: int = 0
    #: Entries of a page that has one in the batch already: from the same µTLB; the first from another one.
    same_utlb: int = 0
    cross_utlb: int = 0
    #: Pages that the device could reach already as its fault needs it, when the batch was served.
    covered: int = 0
    #: Faults that the driver's own rule dropped (filtered, throttled), and pages that it prefetched.
    filtered: int = 0
    throttled: int = 0
    prefetched: int = 0
    #: VA blocks of 2 MiB with a fault, and the most different pages of one.
    va_blocks: int = 0
    most_in_block: int = 0
    #: Calls of hmm_range_fault, how often they asked the notifier before a walk, calls of handle_mm_fault;
    #: calls that returned -EBUSY, walks stale afterwards.
    hmm_calls: int = 0
    walks: int = 0
    handle_mm_faults: int = 0
    ebusy: int = 0
    read_retries: int = 0
    #: Of each range that was mapped: pages that faults named; pages put into the device page table; those of
    #: them that nobody asked for.  A range that is mapped again counts again.
    pages_asked: int = 0
    pages_mapped: int = 0
    pages_unasked: int = 0
    #: Pages whose faults were cancelled because they can never be had.
    cancelled: int = 0
    #: Replays, entries that were dropped by a flush, faults that found the buffer full.
    replays: int = 0
    flushed: int = 0
    overflows: int = 0
    #: Callbacks of the driver's notifiers, and entries of the device page table that they took away.
    invalidations: int = 0
    invalidated_pages: int = 0
    #: Where the time went, by the cost model.
    fetch_ns: int = 0
    preprocess_ns: int = 0
    service_ns: int = 0
    replay_ns: int = 0


#: One row a batch: the fields of :class:`Batch`, uint64 each.
BATCH_DTYPE = np.dtype([(field.name, np.uint64) for field in fields(Batch)])

#: Fields of which a run has no sum.
_NOT_SUMMED = ("start", "end", "most_in_block")


def batch_table(batches: list[Batch]) -> npt.NDArray[np.void]:
    """Return batches as rows of BATCH_DTYPE."""
    names = BATCH_DTYPE.names or ()
    table = np.zeros(len(batches), dtype=BATCH_DTYPE)
    for name in names:
        table[name] = [getattr(batch, name) for batch in batches]
    return table


def totals(table: npt.NDArray[np.void]) -> dict[str, Any]:
    """Return the sums over the batches of a run, and means that papers quote.

    ``faults_per_block`` is what was left after merging, a VA block; ``duplicates`` is the share of raw
    faults beyond the first of each page of a batch, and of those whose page was mapped already.
    """
    summed = {name: int(table[name].sum()) for name in BATCH_DTYPE.names or () if name not in _NOT_SUMMED}
    batches, blocks, raw = len(table), summed["va_blocks"], summed["raw"]
    return {
        "batches": batches,
        **summed,
        "raw_per_batch": raw / max(batches, 1),
        "coalesced_per_batch": summed["coalesced"] / max(batches, 1),
        "unique_per_batch": summed["unique"] / max(batches, 1),
        "blocks_per_batch": blocks / max(batches, 1),
        "faults_per_block": summed["coalesced"] / max(blocks, 1),
        "unique_per_block": summed["unique"] / max(blocks, 1),
        "duplicates": (raw - summed["unique"] + summed["covered"]) / max(raw, 1),
    }
