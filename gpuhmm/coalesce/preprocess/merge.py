"""Merging at fetch over the columns of a batch, compiled for every target from one source.

The rule is that of :mod:`gpuhmm.coalesce.drivers.uvm.fetch`, stated over arrays instead of entries.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuhmm.mm.x86 import ONE, PAGE_SHIFT, U64, ZERO
from gpuhmm.shared import shared

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.uint32]
Halves = npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.uint8]

#: Bits of a page number below 2^56 bytes, and of the rank of an access.
PAGE_BITS = U64(44)
RANK_BITS = U64(3)


@shared("uint64(uint64, uint64)")
def page_key(space: np.uint64, va: np.uint64) -> np.uint64:
    """Return one word that orders pages by space and address: 60 bits, the page number in the low 44."""
    return (space << PAGE_BITS) | (va >> PAGE_SHIFT)


@shared("uint64(uint64, uint64, uint64, Bytes1)")
def sort_key(space: np.uint64, va: np.uint64, access: np.uint64, ranks: Bytes) -> np.uint64:
    """Return one word that orders faults as a driver does: by page, then by the rank of their access."""
    return (page_key(space, va) << RANK_BITS) | U64(ranks[access])


@shared("uint64(uint64, uint64, uint64, Array1, Bytes1, Halves1, Halves1, Array1, Halves1, Numbers1, Bytes1)")
def merge_batch(
    count: np.uint64,
    row: np.uint64,
    slots: np.uint64,
    va: Words,
    access: Bytes,
    space: Halves,
    utlb: Halves,
    last_of_utlb: Words,
    representative: Halves,
    instances: Numbers,
    masks: Bytes,
) -> np.uint64:
    """Merge the ``count`` faults of one batch, whose columns are given; return how many are left.

    Write for each fault the index in the batch of its representative, and to the index of each
    representative its number of instances and the mask of their accesses.  ``row`` is the row of the
    first fault in the trace.  ``last_of_utlb``, from ``slots`` on, has for each µTLB one more than the
    row of its last fault; what lies before ``row`` is of a batch before, so that nobody has to clear it.
    """
    left = ZERO
    last = ZERO
    i = ZERO
    while i < count:
        key = page_key(U64(space[i]), va[i])
        kind = U64(access[i])
        bit = ONE << kind
        slot = slots + U64(utlb[i])
        found = count  # nobody
        if last_of_utlb[slot] > row:
            own = last_of_utlb[slot] - row - ONE
            if page_key(U64(space[own]), va[own]) == key:
                found = own
        if (
            found == count
            and i > ZERO
            and page_key(U64(space[last]), va[last]) == key
            and kind <= U64(access[last])
        ):
            found = last
        if found == count:
            representative[i] = np.uint16(i)
            instances[i] = np.uint32(ONE)
            masks[i] = np.uint8(bit)
            last_of_utlb[slot] = row + i + ONE
            last = i
            left = left + ONE
        else:
            instances[found] = np.uint32(U64(instances[found]) + ONE)
            masks[found] = np.uint8(U64(masks[found]) | bit)
            representative[i] = np.uint16(found)
            if kind > U64(access[found]):
                # Only a fault of the same µTLB comes here.  ``last`` stays, filtered or not.
                representative[i] = np.uint16(i)
                representative[found] = np.uint16(i)
                instances[i] = instances[found]
                masks[i] = masks[found]
                last_of_utlb[slot] = row + i + ONE
        i = i + ONE
    i = ZERO
    while i < count:
        found = U64(representative[i])
        while U64(representative[found]) != found:
            found = U64(representative[found])
        representative[i] = np.uint16(found)
        i = i + ONE
    return left
