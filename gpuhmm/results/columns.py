"""Structured arrays from columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def table_of(columns: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.void]:
    """Return columns of one length, by name, as a structured array."""
    length = max(map(len, columns.values()), default=0)
    table = np.empty(length, dtype=[(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    return table
