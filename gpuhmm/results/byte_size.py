"""Bytes in words."""

from __future__ import annotations


def byte_size(size: int) -> str:
    """Return bytes with the largest binary unit that keeps at least one digit before the point."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"
