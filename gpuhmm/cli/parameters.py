"""Parsers of options that several commands have."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from gpuhmm.image import Segment

_NUMBER = "(0x[0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,18})"
_SEGMENT = re.compile(f"{_NUMBER}:{_NUMBER}@{_NUMBER}")


def address(text: str) -> int:
    """Return a page-aligned address, given in decimal or with 0x."""
    value = number(text)
    if value % 4096:
        raise typer.BadParameter(f"an address must be a multiple of 4096, the page size (got {text})")
    return value


def number(text: str) -> int:
    """Return a number that is not negative, given in decimal or with 0x."""
    try:
        value = int(text, 0)
    except ValueError:
        raise typer.BadParameter(f"an address must be decimal or 0x... (got {text!r})") from None
    if value < 0:
        raise typer.BadParameter(f"an address must be a multiple of 4096, the page size (got {text})")
    return value


def kernel_name(text: str) -> str:
    """Return the name of a kernel that there is a profile of, which may say what its config lacks."""
    from gpuhmm.mm.profile import kernel_profile

    try:
        kernel_profile(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def segments(text: str) -> tuple[Segment, ...]:
    """Return the parts of a raw image: START:LENGTH@OFFSET,... in bytes, decimal or with 0x."""
    from gpuhmm.image import Segment

    found = []
    for part in text.split(","):
        fields = _SEGMENT.fullmatch(part)
        if fields is None:
            raise typer.BadParameter(f"segments must be START:LENGTH@OFFSET,... (got {part!r})")
        found.append(Segment(*(int(field, 0) for field in fields.groups())))
    return tuple(found)


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser that lets only ``choices`` through."""

    def check(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"must be one of {', '.join(choices)} (got {text!r})")
        return text

    return check
