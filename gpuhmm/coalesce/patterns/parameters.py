"""What parameters of patterns may be."""

from __future__ import annotations


def whole(name: str, value: object, least: int, most: int, step: int = 1) -> int:
    """Return a whole number; TypeError for others, ValueError out of bounds or between steps."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number (got {value!r})")
    number = int(value.__index__())
    if not least <= number <= most or number % step:
        multiple = f", a multiple of {step}" if step > 1 else ""
        raise ValueError(f"{name} must be within {least} and {most}{multiple} (got {number})")
    return number


def power(name: str, value: object, least: int, most: int) -> int:
    """Return a whole number that is a power of two; ValueError for others."""
    number = whole(name, value, least, most)
    if number & (number - 1):
        raise ValueError(f"{name} must be a power of two (got {number})")
    return number


def flag(name: str, value: object) -> bool:
    """Return a truth value, given as such or as 0 or 1; ValueError for others."""
    if value not in (0, 1):
        raise ValueError(f"{name} must be 0 or 1 (got {value!r})")
    return bool(value)
