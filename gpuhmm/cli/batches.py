"""``gpuhmm batches``: what drivers make of a recorded trace before they serve anything."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer


def batches(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file, as for gpuhmm coalesce.")],
    rules: Annotated[
        str, typer.Option(help="Whose rules: uvm, nouveau or window; several with commas.")
    ] = "uvm",
    batch: Annotated[
        str | None, typer.Option(help="Faults of a batch; by default those of the rules.")
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="Bytes of a window, a power of two from 4K to 2M.")
    ] = None,
    backend: Annotated[str, typer.Option(help="What runs: cpu, reference, cuda or auto.")] = "auto",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a row a batch (.parquet, .npy) or sums (.json).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")] = False,
) -> None:
    """Cut a recorded trace into batches, merge, sort and group them, tens of millions of faults a second.

    No driver serves anything here, and no fault comes again: what another batch size would have made the
    device do next, only gpuhmm coalesce can say.

        gpuhmm batches faults.parquet --batch 512 --window 64K
    """
    from gpuhmm.coalesce.drivers.settings import parse_size
    from gpuhmm.coalesce.preprocess import coalesce_trace
    from gpuhmm.coalesce.readers import read_trace
    from gpuhmm.hmm.backends import resolve_backend
    from gpuhmm.results.files import check_suffix

    if out is not None:
        check_suffix(out)
    info = resolve_backend(backend)
    sizes: dict[str, int | None] = {}
    for name, word in (("batch", batch), ("window", window)):
        try:
            sizes[name] = None if word is None else parse_size(word)
        except ValueError:
            raise typer.BadParameter(
                f"--{name} must be a number, which may end in K or M (got {word!r})"
            ) from None
    faults = read_trace(trace)
    report: dict[str, Any] = {"trace": str(trace), "faults": len(faults), "rules": {}}
    made = {}
    for name in rules.split(","):
        coalesce_trace(faults[:1], **sizes, rules=name, backend=info.name)  # compiled before it is timed
        began = time.perf_counter()
        made[name] = coalesce_trace(faults, **sizes, rules=name, backend=info.name)
        seconds = time.perf_counter() - began
        report["rules"][name] = {
            "batch": made[name].batch,
            "window": made[name].window,
            "batches": len(made[name]),
            **made[name].totals(),
            "seconds": round(seconds, 6),
        }
    report |= {"backend": info.name, "device": info.device}
    if out is not None:
        from gpuhmm.coalesce.run_table import numbered_batches
        from gpuhmm.results.files import write_results

        rows = numbered_batches("rules", [(name, table.columns()) for name, table in made.items()])
        write_results(out, rows, summary=report)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    _print(report)
    if out is not None:
        typer.echo(f"written: {out}")


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in report["rules"]:
        table.add_column(name, justify="right", no_wrap=True)
    columns = report["rules"].values()
    for key in next(iter(columns)):
        if key != "seconds":
            table.add_row(key.replace("_", " "), *(f"{column[key]:,}" for column in columns))
    speeds = (report["faults"] / max(column["seconds"], 1e-9) / 1e6 for column in columns)
    table.add_row("M faults a second", *(f"{speed:,.1f}" for speed in speeds))
    console.print(table)
    how = f"{report['backend']} back end ({report['device']})"
    console.print(f"\n{report['faults']:,} faults of {report['trace']}; {how}", markup=False, soft_wrap=True)
