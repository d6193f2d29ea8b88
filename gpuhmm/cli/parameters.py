"""Parsers of options that several commands have."""

from __future__ import annotations

from collections.abc import Callable

import typer


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


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser that lets only ``choices`` through."""

    def check(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"must be one of {', '.join(choices)} (got {text!r})")
        return text

    return check
