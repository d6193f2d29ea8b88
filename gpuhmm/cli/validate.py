"""``gpuhmm validate``: published measurements of fault coalescing, compared with what the model gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gpuhmm.coalesce.validate import Row


def validate(
    exact_only: Annotated[
        bool, typer.Option("--exact", help="Only what must be equal: seconds instead of minutes.")
    ] = False,
    backend: Annotated[str, typer.Option(help="What walks: cpu, reference, cuda or auto.")] = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the device and of random draws.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Write the rows: .md (a page), .json, .parquet or .npy.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")] = False,
) -> None:
    """Compare the coalescing model with published measurements; about three minutes.

    Exact rows follow from rules and limits and must be equal; shapes must come out within a tolerance;
    what is calibrated was put in.  Exit code 1 if an exact row fails.  A shape that fails stays, with the
    reason as far as it is known.
    """
    from rich.console import Console

    from gpuhmm.coalesce.validate import validate as run
    from gpuhmm.coalesce.validate.report import counts, values
    from gpuhmm.hmm.backends import resolve_backend

    info = resolve_backend(backend)
    if out is not None:
        _check_out(out)
    console = Console(stderr=True)
    with console.status("compiling") as status:
        rows = run(
            exact_only=exact_only,
            backend=info.name,
            seed=seed,
            told=lambda what: status.update(f"running {what}"),
        )
    how = f"{info.name} ({info.device}), seed {seed}"
    if out is not None:
        _write(rows, out, how)
    if as_json:
        report = {"backend": info.name, "device": info.device, "seed": seed, "rows": values(rows)}
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(rows, f"{how}; {counts(rows)}")
        if out is not None:
            typer.echo(f"written: {out}")
    if any(row.kind == "exact" and not row.passed for row in rows):
        raise typer.Exit(1)


def _check_out(out: Path) -> None:
    from gpuhmm.cli.outputs import check_outputs
    from gpuhmm.results.files import check_suffix

    check_outputs({"--out": out})
    if out.suffix.lower() != ".md":
        try:
            check_suffix(out)
        except ValueError:
            raise typer.BadParameter(
                f"--out must end in .md, .json, .parquet or .npy (got {out.name!r})"
            ) from None


def _write(rows: list[Row], out: Path, how: str) -> None:
    import numpy as np

    from gpuhmm.coalesce.validate.report import markdown, values
    from gpuhmm.results.columns import table_of
    from gpuhmm.results.files import write_results
    from gpuhmm.results.partial_file import whole_file

    if out.suffix.lower() == ".md":
        with whole_file(out) as partial:
            partial.write_text(markdown(rows, how))
        return
    plain = values(rows)
    columns = {
        name: np.array([row[name] for row in plain]) for name in plain[0] if name not in ("low", "high")
    }
    write_results(out, table_of(columns), summary={"how": how, "rows": plain})


def _print(rows: list[Row], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from gpuhmm.coalesce.validate.report import number

    console = Console(highlight=False)
    console.width = max(console.width, 150)  # a table that is cut tells nothing
    table = Table(box=None, pad_edge=False)
    for name in ("row", "published", "model", "tolerance", "", "source"):
        table.add_column(
            name, justify="right" if name in ("published", "model") else "left", no_wrap=name != "source"
        )
    kind = ""
    for row in rows:
        if row.kind != kind:
            kind = row.kind
            table.add_section()
        colour = {"pass": "green", "FAIL": "red"}.get(row.verdict, "dim")
        table.add_row(
            row.name,
            number(row.published),
            number(row.model),
            row.tolerance,
            f"[{colour}]{row.verdict}[/]",
            row.source,
        )
    console.print(table)
    for row in rows:
        if row.shown_reason:
            console.print(f"\n{row.name}: {row.shown_reason}", markup=False, soft_wrap=True, end="")
    console.print(f"\n\n{title}", markup=False, soft_wrap=True)
