"""``gpuhmm walk``: the page tables of a live process, walked in one call."""

from __future__ import annotations


def walk() -> None:
    """Walk the page tables of a live process."""
    raise NotImplementedError
