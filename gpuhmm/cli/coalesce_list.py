"""What ``gpuhmm coalesce`` knows: patterns, drivers, devices and cost models, with what can be set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import typer


def print_list(wanted: bool) -> None:
    """Print everything that can be named on the command line, and exit."""
    if not wanted:
        return
    from gpuhmm.coalesce.costs import COSTS
    from gpuhmm.coalesce.cpu_side import OPERATIONS
    from gpuhmm.coalesce.device.config import DEVICES
    from gpuhmm.coalesce.drivers.registry import DRIVERS
    from gpuhmm.coalesce.layouts import LAYOUTS
    from gpuhmm.coalesce.patterns.registry import PATTERNS

    _print(
        "patterns (SOURCE, as sgemm:n=4096)",
        ((name, one.summary.replace("``", "")) for name, one in PATTERNS.items()),
    )
    _print("their parameters", ((name, _settings(one.parameters)) for name, one in PATTERNS.items()))
    _print(
        "drivers (--driver) and their settings (--set)",
        _of_dataclasses((n, d[1]) for n, d in DRIVERS.items()),
    )
    _print("devices (--device) and their settings (--device-set)", _of_dataclasses(DEVICES.items()))
    _print("memory before (--layout)", ((name, one.words) for name, one in LAYOUTS.items()))
    _print("cost models (--costs)", ((name, one.source) for name, one in COSTS.items()))
    _print("their times in ns (--cost)", _of_dataclasses(COSTS.items(), leave_out=("name", "source")))
    _print("what the CPU does (--cpu)", ((name, "") for name in OPERATIONS))
    raise typer.Exit


def _of_dataclasses(
    named: Iterable[tuple[str, Any]], leave_out: tuple[str, ...] = ("name",)
) -> Iterable[tuple[str, str]]:
    for name, one in named:
        plain = {field.name: getattr(one, field.name) for field in fields(one) if field.name not in leave_out}
        yield name, _settings(plain)


def _settings(values: dict[str, Any]) -> str:
    words = {True: "on", False: "off"}
    shown = (f"{name}={words[value] if isinstance(value, bool) else value}" for name, value in values.items())
    return " ".join(shown)


def _print(title: str, rows: Iterable[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, words in rows:
        table.add_row(Text(f"  {name}"), Text(words))
    console = Console(highlight=False)
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()
