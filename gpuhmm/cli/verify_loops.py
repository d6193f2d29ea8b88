"""``gpuhmm verify --loops``: the model of handle_mm_fault against driver loops of a running kernel."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gpuhmm.cli.tables import print_table

if TYPE_CHECKING:
    from gpuhmm.check.recorded.report import FamilyCount


def verify_loops(paths: list[Path], backend: str, jobs: int | None, as_json: bool) -> None:
    """Replay recorded driver loops and print how many the model reproduces; exit code 1 if one differs."""
    from rich.console import Console

    from gpuhmm.check.recorded.report import check_family, loop_files
    from gpuhmm.hmm.backends import resolve_backend

    info = resolve_backend(backend)
    families = []
    status = Console(stderr=True)
    for path in loop_files(paths):
        with status.status(f"{path.stem} ..."):
            families.append(check_family(path, info.name, jobs))
    if as_json:
        report = {"backend": info.name, "device": info.device, "families": [asdict(f) for f in families]}
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(families, f"{info.name} ({info.device})")
    if any(family.different for family in families):
        raise typer.Exit(1)


def _print(families: list[FamilyCount], backend: str) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    columns = ("family", "cases", "identical", "given facts", "different", "reproduced", "faults", "seconds")
    for name in columns:
        table.add_column(name, justify="left" if name == "family" else "right")
    for one in families:
        counts = (one.cases, one.identical, one.with_facts, one.different)
        share = f"{100 * (one.cases - one.different) / max(one.cases, 1):.1f} %"
        table.add_row(
            one.family, *(f"{count:,}" for count in counts), share, f"{one.faults:,}", f"{one.seconds:.1f}"
        )
    console = print_table(table)
    _print_facts(families)
    for one in families:
        for difference in one.differences:
            head = f"\n{one.family}: {difference.cases} cases of {difference.scenario} differ in "
            console.print(f"{head}{difference.point}; the first is {difference.case}", soft_wrap=True)
            console.print(f"  {difference.words}", markup=False, soft_wrap=True)
    cases, different = sum(one.cases for one in families), sum(one.different for one in families)
    verdict = f"{different:,} differ" if different else "all reproduced"
    console.print(f"\n{backend} against the recorded loops: {cases:,} calls, {verdict}", markup=False)


def _print_facts(families: list[FamilyCount]) -> None:
    from rich.table import Table

    from gpuhmm.check.recorded.facts import FACTS

    table = Table(box=None, pad_edge=False)
    table.add_column("\nfact taken from the outcome")
    table.add_column("\ncases", justify="right")
    table.add_column("\nrule")
    for fact in FACTS:
        count = sum(one.facts.get(fact.__name__, 0) for one in families)
        rule = (fact.__doc__ or "").strip().splitlines()[0]
        if count:
            table.add_row(fact.__name__, f"{count:,}", rule)
    if table.row_count:
        print_table(table)
