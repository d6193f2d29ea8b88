"""Canonical addresses: the topmost translated bit is repeated in all bits above it."""

from __future__ import annotations

import numpy as np

from gpuhmm.mm.tables import Words


def canonical(vas: Words, levels: int) -> Words:
    """Return addresses of 48 or 57 bits with their top bit repeated above it, as a program sees them."""
    top = 12 + 9 * levels
    high = (vas >> np.uint64(top - 1)) & np.uint64(1)
    return vas | np.where(high, np.uint64((1 << 64) - (1 << top)), np.uint64(0))
