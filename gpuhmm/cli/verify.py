"""``gpuhmm verify``: one back end held against another."""

from __future__ import annotations


def verify() -> None:
    """Hold one back end against another."""
    raise NotImplementedError
