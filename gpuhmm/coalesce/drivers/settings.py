"""Settings of a driver, or of anything else that is a frozen dataclass of plain fields, given as words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

T = TypeVar("T")

_SIZES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def with_settings(settings: T, given: Mapping[str, object]) -> T:
    """Return ``settings`` with the given fields replaced; words become what the field's present value is.

    Sizes may end in K, M or G; truth values are on or off; ``none`` where a field may be None.  ValueError
    for a field that there is not and for a value that is none of its type.
    """
    types = {field.name: str(field.type) for field in fields(settings)}  # type: ignore[arg-type]
    changed: dict[str, Any] = {}
    for name, value in given.items():
        if name not in types:
            raise ValueError(f"{type(settings).__name__} has no setting {name!r}; it has {', '.join(types)}")
        changed[name] = _value(name, value, types[name]) if isinstance(value, str) else value
    return replace(settings, **changed)  # type: ignore[type-var]


def _value(name: str, word: str, kind: str) -> object:
    if "None" in kind and word.lower() == "none":
        return None
    if kind.startswith("bool"):
        if word.lower() not in ("on", "off", "true", "false", "1", "0"):
            raise ValueError(f"{name} must be on or off (got {word!r})")
        return word.lower() in ("on", "true", "1")
    if kind.startswith("str"):
        return word
    try:
        if kind.startswith("float"):
            return float(word)
        return parse_size(word)
    except ValueError:
        what = "a number" if kind.startswith("float") else "a whole number, which may end in K, M or G"
        raise ValueError(f"{name} must be {what} (got {word!r})") from None


def parse_size(word: str) -> int:
    """Return a whole number that may end in K, M or G, powers of 1024.  ValueError for anything else."""
    text = word.strip().lower().removesuffix("ib")
    if text and text[-1] in _SIZES:
        return int(text[:-1]) * _SIZES[text[-1]]
    return int(text)
