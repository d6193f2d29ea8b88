"""The axes of a sweep, as they are written: ``batch=64..4096,request=access|vma``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gpuhmm.coalesce.drivers.settings import parse_size
from gpuhmm.results.byte_size import byte_size

#: Points that a sweep may have.
MAX_POINTS = 10_000

#: A setting and the values that it takes, in words or as numbers, for each axis.
Axes = dict[str, tuple[str | int, ...]]


def parse_axes(text: str) -> Axes:
    """Return the axes of a sweep.

    Axes have commas between; each is a setting, ``=``, and either two powers of two with ``..`` between,
    which stand for all powers of two from the one to the other, or values with ``|`` between.  Sizes may
    end in K, M or G.  ValueError for what is none of that, empty, or given more than once.
    """
    axes: Axes = {}
    for part in text.split(","):
        name, equals, words = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not words:
            raise ValueError(
                f"an axis must be SETTING=FROM..TO or SETTING=A|B|C, as batch=64..4096 (got {part!r})"
            )
        if name in axes:
            raise ValueError(f"the axis {name} is given more than once")
        axes[name] = _powers(name, words) if ".." in words else _listed(name, words)
    check_axes(axes)
    return axes


def _powers(name: str, words: str) -> tuple[int, ...]:
    low, _, high = (piece.strip() for piece in words.partition(".."))
    try:
        first, last = parse_size(low), parse_size(high)
    except ValueError:
        raise ValueError(f"{name} must go from one number to another, as 4K..2M (got {words!r})") from None
    for end in (first, last):
        if end < 1 or end & (end - 1) or end > 1 << 62:
            raise ValueError(f"{name} must go from one power of two to another (got {words!r})")
    if first > last:
        raise ValueError(f"the range of {name} is empty: {words} goes down")
    return tuple(1 << bit for bit in range(first.bit_length() - 1, last.bit_length()))


def _listed(name: str, words: str) -> tuple[str, ...]:
    values = tuple(word.strip() for word in words.split("|"))
    if not all(values) or len(set(values)) < len(values):
        raise ValueError(f"the values of {name} must be words, each once, with | between (got {words!r})")
    return values


def check_axes(axes: Mapping[str, Sequence[str | int]]) -> int:
    """Return how many points there are.  ValueError for none, and for more than MAX_POINTS."""
    if not axes:
        raise ValueError("a sweep needs at least one axis")
    for name, values in axes.items():
        if not len(values):
            raise ValueError(f"the axis {name} has no values")
    points = math.prod(len(values) for values in axes.values())
    if points > MAX_POINTS:
        shape = " x ".join(f"{len(values)}" for values in axes.values())
        raise ValueError(f"a sweep may have at most {MAX_POINTS:,} points (got {points:,}: {shape})")
    return points


def value_words(values: Sequence[str | int]) -> list[str]:
    """Return the values of an axis in words: as sizes if they are whole pages and reach beyond 64 KiB."""
    numbers = [value for value in values if isinstance(value, int)]
    sizes = max(numbers, default=0) > 1 << 16 and not any(value % 4096 for value in numbers)
    return [byte_size(value) if sizes and isinstance(value, int) else f"{value}" for value in values]
