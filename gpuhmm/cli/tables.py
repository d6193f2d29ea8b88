"""Printing tables: numbers that are cut would be wrong ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def width_of(console: Console, table: Table) -> int:
    """Return how many columns a table takes if nothing is cut or folded."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=1000), table).maximum


def print_table(table: Table) -> Console:
    """Print a table whole, however narrow the terminal; return the console for what follows."""
    from rich.console import Console

    console = Console(highlight=False)
    needed = width_of(console, table)
    if console.width < needed:
        console = Console(highlight=False, width=needed)
    console.print(table)
    return console
