"""``gpuhmm verify``: one back end compared with another, and both with recorded calls."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from gpuhmm.cli.tables import print_table

if TYPE_CHECKING:
    from gpuhmm.check.campaign import Campaign, Finding
    from gpuhmm.check.ptx import Machine

T = TypeVar("T")


@dataclass(frozen=True)
class SetCount:
    """One file of recorded cases, or all random ones, in numbers."""

    set: str
    cases: int
    left_out: int
    different: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """What ``verify`` found; the keys of its JSON."""

    backend: str
    device: str
    against: str
    seed: int
    seconds: float
    cases: int
    left_out: int
    different: int
    sets: list[SetCount]
    not_case_files: list[str]
    findings: list[Finding]
    kernel_mistakes: list[str]


def verify(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(exists=True, help="Files of recorded calls, or folders that hold some."),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="The back end to check: cpu, cuda, reference or auto.")
    ] = "auto",
    against: Annotated[str, typer.Option(help="The back end that is trusted.")] = "reference",
    cases: Annotated[
        int | None,
        typer.Option(min=0, help="Random cases [default: 1000; none if files are given or --minutes is]."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Random cases for that long.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first random case; each has the next.")] = 0,
    kernel: Annotated[
        str | None, typer.Option(help="Random cases of this kernel, as v6.12 [default: each of any].")
    ] = None,
    max_pages: Annotated[
        int, typer.Option(min=1, help="Leave out cases of more pages (the simulator is slow).")
    ] = 1 << 30,
    parallel_from: Annotated[
        int | None,
        typer.Option(min=0, help="Pages from which on several CPU threads share a range [default: tuned]."),
    ] = None,
    past_caches_from: Annotated[
        int | None,
        typer.Option(min=0, help="Pages from which on words are stored past the caches [default: tuned]."),
    ] = None,
    stream: Annotated[
        bool, typer.Option(help="Stream whole slots on CUDA, or resolve all of them page by page.")
    ] = True,
    ptx: Annotated[
        bool,
        typer.Option("--ptx", help="With cuda: run compiled kernels on this CPU (C compiler, no GPU)."),
    ] = False,
    save: Annotated[Path, typer.Option(help="Folder for the cases that differ.")] = Path("differences"),
    loops: Annotated[
        list[Path] | None,
        typer.Option(
            "--loops",
            "--captures",
            exists=True,
            help="Replay driver loops recorded in a running kernel, of this file or folder; nothing else.",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes for --loops [default: one a CPU].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")] = False,
) -> None:
    """Compare one back end with another: return code, words, calls, stores, walks, page tables.

    Recorded calls are replayed on both back ends and compared with the record; random address spaces
    on both and compared with each other.  A case that differs is made small, saved in a file that
    verify replays, and explained; the exit code is then 1.

    With --ptx, what the CUDA kernels were compiled to is run by a machine that checks every access; a
    mistake of a kernel is printed, and the exit code is then 1 as well.

    With --loops, driver loops recorded in a running kernel are replayed against the model of
    handle_mm_fault: every walk, fault and invalidation, the words and the page tables afterwards.
    """
    if loops:
        from gpuhmm.cli.verify_loops import verify_loops

        if paths or cases or minutes:
            raise typer.BadParameter("--loops is for itself: leave out files, --cases and --minutes")
        verify_loops(loops, backend, jobs, as_json)
        return
    from gpuhmm.check.campaign import Campaign, case_files
    from gpuhmm.hmm.backends import resolve_backend
    from gpuhmm.kernels.paths import PATHS
    from gpuhmm.mm.profile import PROFILES

    if kernel is not None and kernel not in PROFILES:
        raise typer.BadParameter(f"--kernel must be one of {', '.join(PROFILES)} (got {kernel})")
    PATHS.parallel_from, PATHS.past_caches_from, PATHS.stream = parallel_from, past_caches_from, stream
    machine = _ptx_machine(backend, seed) if ptx else None
    info, trusted = resolve_backend(backend), resolve_backend(against)
    files, others = case_files(paths or [])
    if cases is None:
        cases = 0 if files or minutes is not None else 1000
    campaign = Campaign(info.name, trusted.name, save, max_pages, kernel)
    started = time.monotonic()
    sets = [
        _checked(campaign, str(file.path), campaign.check_recorded, file, len(file), as_json)
        for file in files
    ]
    if cases or minutes is not None:
        seeds = _seeds(seed, cases, minutes)
        total = cases if minutes is None else None
        sets.append(_checked(campaign, "random cases", campaign.check_random, seeds, total, as_json))
    report = Report(
        backend=info.name,
        device=info.device,
        against=trusted.name,
        seed=seed,
        seconds=round(time.monotonic() - started, 3),
        cases=campaign.checked,
        left_out=campaign.left_out,
        different=campaign.different,
        sets=sets,
        not_case_files=[str(path) for path in others],
        findings=campaign.findings,
        kernel_mistakes=machine.take_mistakes() if machine else [],
    )
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
    else:
        _print(report)
    if campaign.different or report.kernel_mistakes:
        raise typer.Exit(1)


def _ptx_machine(backend: str, seed: int) -> Machine:
    """Put the PTX machine in the place of a GPU, for the rest of this process."""
    if backend != "cuda":
        raise typer.BadParameter(f"--ptx runs CUDA kernels: say --backend cuda (got {backend})")
    from gpuhmm.check.ptx import Options, install

    return install(Options(order="random", seed=seed))


def _checked(
    campaign: Campaign,
    name: str,
    check: Callable[[T], None],
    items: Iterable[T],
    total: int | None,
    quiet: bool,
) -> SetCount:
    """Check every item under a progress bar; return the counts of this set."""
    from rich.console import Console
    from rich.progress import track

    before = campaign.checked, campaign.left_out, campaign.different
    started = time.monotonic()
    for item in track(items, name, total, console=Console(stderr=True), transient=True, disable=quiet):
        check(item)
    return SetCount(
        set=name,
        cases=campaign.checked - before[0],
        left_out=campaign.left_out - before[1],
        different=campaign.different - before[2],
        seconds=round(time.monotonic() - started, 3),
    )


def _seeds(seed: int, cases: int, minutes: float | None) -> Iterator[int]:
    """Yield seeds until there were ``cases`` of them, or until the time is up."""
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    done = 0
    while done < cases if deadline is None else time.monotonic() < deadline:
        yield seed + done
        done += 1


def _print(report: Report) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("set", "cases", "left out", "different", "seconds"):
        table.add_column(name, justify="left" if name == "set" else "right", overflow="fold")
    for row in report.sets:
        counts = [f"{count:,}" for count in (row.cases, row.left_out, row.different)]
        table.add_row(row.set, *counts, f"{row.seconds:.1f}")
    console = print_table(table)
    if report.not_case_files:
        console.print(f"{len(report.not_case_files)} .npz files hold no recorded calls and were left out")
    for finding in report.findings:
        head = f"\n{finding.case} differs; replay it with: gpuhmm verify {finding.saved}"
        console.print(head, markup=False, soft_wrap=True)
        for line in finding.differences:
            console.print(f"  {line}", markup=False, soft_wrap=True)
    for mistake in report.kernel_mistakes:
        console.print(f"a kernel's mistake: {mistake}", markup=False, soft_wrap=True)
    verdict = f"{report.different:,} cases differ" if report.different else "no difference"
    console.print(
        f"{report.backend} ({report.device}) against {report.against}: {report.cases:,} cases, {verdict}",
        markup=False,
        soft_wrap=True,
    )
