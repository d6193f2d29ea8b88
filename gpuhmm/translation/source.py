"""What can be translated: anything with the arrays of page tables."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.tables import Words


class Tables(Protocol):
    """Upper tables with the rows of their children, and leaf tables; the top table is row 0.

    :class:`gpuhmm.dump.RawTables` and :class:`gpuhmm.mm.tables.PageTables` are such.
    """

    @property
    def levels(self) -> int:
        """4 or 5."""

    @property
    def upper(self) -> Words:
        """uint64[n_upper, 512]."""

    @property
    def child(self) -> npt.NDArray[np.int32]:
        """int32[n_upper, 512]: the row of ``leaf`` behind level 2, else of ``upper``; -1 for none."""

    @property
    def leaf(self) -> Words:
        """uint64[n_leaf, 512]."""


def tables_of(source: Any) -> Tables:
    """Return the tables of an AddressSpace, of what has a ``space``, or of tables themselves."""
    space = getattr(source, "space", source)
    if isinstance(space, AddressSpace):
        return space.page_tables
    if all(hasattr(source, name) for name in ("levels", "upper", "child", "leaf")):
        return source
    raise TypeError(
        "what is translated must be an AddressSpace, a snapshot or the tables of load_tables "
        f"(got {type(source).__name__})"
    )
