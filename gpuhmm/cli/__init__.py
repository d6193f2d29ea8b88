"""The ``gpuhmm`` command.

Each subcommand lives in a module of this package and imports what it needs when it runs, so that
``--help`` answers at once.  Exit codes: 0 all well, 1 the command failed, 2 it was called wrongly.
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from gpuhmm.cli import batches, bench, capture, coalesce, faults, info, map, validate, verify, walk
from gpuhmm.version import __version__

app = typer.Typer(
    name="gpuhmm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Linux's hmm_range_fault() for millions of pages at once, on CPU and GPU, bit for bit.",
)
app.command()(walk.walk)
app.command()(capture.capture)
app.command()(info.info)
app.command("map")(map.draw_map)
app.command()(verify.verify)
app.command()(bench.bench)
app.command()(faults.faults)
app.command()(coalesce.coalesce)
app.command()(batches.batches)
app.command()(validate.validate)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpuhmm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line; what a user can mend is one line on standard error, not a traceback."""
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads on; Python must not complain about it at exit
        sys.exit(1)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        Console(stderr=True, highlight=False).print("gpuhmm:", str(error), markup=False, soft_wrap=True)
        sys.exit(1)
