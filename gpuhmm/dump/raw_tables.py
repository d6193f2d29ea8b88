"""Page tables as they lie in memory: what hardware would walk, without any idea of VMAs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.mm.tables import Words
from gpuhmm.mm.x86 import PAGE_PRESENT, PAGE_PSE

#: An entry that points to a table which the image lacks, and one with a reserved bit: PSE at level 4 or 5,
#: or an address inside a large page.
FAULT_MISSING = 1
FAULT_RESERVED = 2

FAULT_NAMES = {FAULT_MISSING: "table missing from the image", FAULT_RESERVED: "reserved bit set"}

#: One upper entry that cannot be followed: its place (row of ``upper`` and slot), the first address
#: that it covers, and its raw value.
FAULT_DTYPE = np.dtype(
    [
        ("kind", np.uint8),
        ("level", np.uint8),
        ("row", np.uint32),
        ("slot", np.uint16),
        ("va", np.uint64),
        ("entry", np.uint64),
    ]
)


@dataclass(frozen=True, eq=False)
class RawTables:
    """The tables below one CR3.

    ``upper`` is uint64[n_upper, 512], the top table in row 0, ``child`` int32[n_upper, 512] the row of
    the table behind each entry (of ``leaf`` behind level 2, else of ``upper``) or -1, ``leaf``
    uint64[n_leaf, 512].  A table that is used at two levels has a row for each.  ``upper_pfns``,
    ``upper_levels`` (uint8) and ``leaf_pfns`` name the rows; ``faults`` is ``FAULT_DTYPE``[n].  Entries are
    raw but for two things: AMD's encryption bit is taken out, and the PFN of a PROT_NONE entry is inverted
    as kernels since 4.18.1 store it.  ``notes`` say what had to be assumed.
    """

    levels: int
    root_pfn: int
    upper: Words
    child: npt.NDArray[np.int32]
    leaf: Words
    upper_pfns: Words
    upper_levels: npt.NDArray[np.uint8]
    leaf_pfns: Words
    faults: npt.NDArray[np.void]
    origin: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def nr_tables(self) -> int:
        """Tables that were read; one used at two levels counts twice."""
        return len(self.upper) + len(self.leaf)

    @property
    def has_leaves(self) -> bool:
        """True if a level 2 or 3 entry maps a page of its own."""
        entries = self.upper[self.upper_levels <= 3]
        large = PAGE_PRESENT | PAGE_PSE
        return bool(((entries & large) == large).any())

    def used_twice(self) -> Words:
        """Return the PFNs of tables that are used at more than one level (self-references), uint64[n]."""
        pfns, counts = np.unique(np.concatenate((self.upper_pfns, self.leaf_pfns)), return_counts=True)
        return pfns[counts > 1]

    def fault_counts(self) -> dict[str, int]:
        """Return how many upper entries cannot be followed, by kind in words."""
        kinds = self.faults["kind"]
        return {name: int((kinds == kind).sum()) for kind, name in FAULT_NAMES.items()}
