"""Faults of a device, as columns: what a fault buffer held, in the order in which it was written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.access import ACCESS_NAMES
from gpuhmm.mm.arguments import check_array

#: The columns of a trace and their dtypes.
COLUMNS: dict[str, type[np.unsignedinteger[Any]]] = {
    "time": np.uint64,
    "va": np.uint64,
    "access": np.uint8,
    "space": np.uint16,
    "gpc": np.uint8,
    "utlb": np.uint16,
    "sm": np.uint16,
    "client": np.uint16,
}

#: Where the user half of canonical addresses ends with five levels of page tables.
_USER_END = np.uint64(1 << 56)


@dataclass
class FaultTrace:
    """Faults in the order of the buffer: one array a column, all of one length.

    ``time`` is in ns and never falls; ``va`` is the address in bytes, aligned to 4096 as hardware reports
    it; ``access`` is a number of :data:`gpuhmm.coalesce.access.ACCESS_NAMES`; ``space`` counts address
    spaces (the instance pointer of the entry); ``gpc``, ``utlb``, ``sm`` and ``client`` say who faulted,
    0 where that is not known.  ``utlb`` counts over the whole device.  ``notes`` say where it comes from.

    TypeError for other dtypes, ValueError, with the place, for times that fall, unknown accesses and
    addresses that are unaligned or not canonical user addresses.
    """

    time: npt.NDArray[np.uint64]
    va: npt.NDArray[np.uint64]
    access: npt.NDArray[np.uint8]
    space: npt.NDArray[np.uint16]
    gpc: npt.NDArray[np.uint8]
    utlb: npt.NDArray[np.uint16]
    sm: npt.NDArray[np.uint16]
    client: npt.NDArray[np.uint16]
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dtype in COLUMNS.items():
            column = getattr(self, name)
            check_array(name, column, (None,) if name == "time" else (len(self.time),), dtype)

    @classmethod
    def of(cls, **columns: Any) -> FaultTrace:
        """Return a checked trace of the given columns; ``va`` must be there, others default to 0."""
        notes = columns.pop("notes", {})
        unknown = set(columns) - set(COLUMNS)
        if unknown or "va" not in columns:
            raise ValueError(f"a trace has the columns {', '.join(COLUMNS)} (got {', '.join(columns)})")
        length = len(columns["va"])
        made = {
            name: np.ascontiguousarray(columns.get(name, np.zeros(length, dtype=dtype)), dtype=dtype)
            for name, dtype in COLUMNS.items()
        }
        trace = cls(**made, notes=notes)
        trace.check()
        return trace

    @classmethod
    def empty(cls) -> FaultTrace:
        """Return a trace without faults."""
        return cls.of(va=np.zeros(0, dtype=np.uint64))

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, rows: slice | npt.NDArray[Any]) -> FaultTrace:
        """Return some faults: views for a slice, copies for an array of places or truth values."""
        return FaultTrace(**{name: getattr(self, name)[rows] for name in COLUMNS}, notes=self.notes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FaultTrace) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in COLUMNS
        )

    @property
    def spaces(self) -> int:
        """How many address spaces there are: one more than the highest number."""
        return int(self.space.max(initial=0)) + 1

    @property
    def utlbs(self) -> int:
        """How many µTLBs there are: one more than the highest number."""
        return int(self.utlb.max(initial=0)) + 1

    def check(self) -> None:
        """Raise a ValueError that names the first fault which cannot be."""
        self._refuse("time", self._falls(), "must not lie before that of the fault above it")
        self._refuse("access", self.access >= len(ACCESS_NAMES), f"must be below {len(ACCESS_NAMES)}")
        self._refuse("va", self.va & np.uint64(4095) != 0, "must be aligned to 4096")
        self._refuse("va", self.va >= _USER_END, "must be a canonical user address, below 2^56")

    def _falls(self) -> npt.NDArray[np.bool_]:
        falls = np.zeros(len(self), dtype=np.bool_)
        falls[1:] = self.time[1:] < self.time[:-1]
        return falls

    def _refuse(self, name: str, wrong: npt.NDArray[np.bool_], rule: str) -> None:
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            value = int(getattr(self, name)[row])
            shown = f"{value:#x}" if name == "va" else f"{value}"
            raise ValueError(f"{name} of fault {row} {rule} (got {shown})")


def concatenate(traces: Iterable[FaultTrace]) -> FaultTrace:
    """Return traces one after the other; notes are those of the first.  ValueError as for a trace."""
    parts = list(traces)
    if not parts:
        return FaultTrace.empty()
    made = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    return FaultTrace.of(**made, notes=parts[0].notes)
