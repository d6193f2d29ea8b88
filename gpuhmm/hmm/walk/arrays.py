"""The arrays that one walk reads and writes, as one record."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

#: The words of a call that has none: what is wanted are runs.
NO_WORDS = np.empty(0, dtype=np.uint64)


class Arrays(NamedTuple):
    """What shared functions get in one argument; a kernel takes the arrays one by one and makes this of them.

    ``vmas`` is uint64[4, n]: start, end, flags and page shift of each area, by address
    (:meth:`gpuhmm.mm.vma.VmaList.columns`).  ``owners`` is uint64[n, 3]: first PFN, end and owner of
    device-private memory.  ``upper``, ``child`` and ``leaf`` are those of
    :class:`gpuhmm.mm.tables.PageTables`.  ``hmm_pfns`` is uint64[pages of the range]: the requests.
    """

    vmas: npt.NDArray[np.uint64]
    owners: npt.NDArray[np.uint64]
    upper: npt.NDArray[np.uint64]
    child: npt.NDArray[np.int32]
    leaf: npt.NDArray[np.uint64]
    hmm_pfns: npt.NDArray[np.uint64]


def host_arrays(mm: AddressSpace, hmm_pfns: npt.NDArray[np.uint64] = NO_WORDS) -> Arrays:
    """Return the arrays of a space as they are now, beside the words of a call that has any."""
    tables = mm.page_tables
    return Arrays(mm.vmas.columns(), mm.device_private, tables.upper, tables.child, tables.leaf, hmm_pfns)
