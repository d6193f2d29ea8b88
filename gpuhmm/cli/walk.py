"""``gpuhmm walk``: the page tables of a process, a dump or a snapshot, walked in one call."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhmm.cli import options
from gpuhmm.cli.parameters import one_of
from gpuhmm.cli.source import Source
from gpuhmm.cli.tables import print_table, width_of
from gpuhmm.cli.watch import watch
from gpuhmm.hmm.backends import BACKENDS
from gpuhmm.hmm.loop import REQUESTS
from gpuhmm.results.byte_size import byte_size

if TYPE_CHECKING:
    from rich.table import Table

    from gpuhmm.capture import CaptureSummary, PageCounts

_BACKENDS = ("auto", *BACKENDS)

OUT_HELP = "Also write the runs to a file: .parquet or .npy; .json takes the summary."


def walk(
    snapshot: options.Snapshot = None,
    pid: options.Pid = None,
    dump: options.Dump = None,
    cr3: options.Cr3 = None,
    levels: options.Levels = None,
    maps: options.Maps = None,
    kernel: options.Kernel = None,
    segments: options.Segments = None,
    sme_mask: options.SmeMask = None,
    upright_protnone: options.UprightProtnone = False,
    start: options.Start = None,
    end: options.End = None,
    request: Annotated[
        str,
        typer.Option(
            parser=one_of(*REQUESTS),
            metavar="|".join(REQUESTS),
            help="What is asked of every page. Faults are modelled on a copy, never made in the process.",
        ),
    ] = "none",
    backend: Annotated[
        str,
        typer.Option(parser=one_of(*_BACKENDS), metavar="|".join(_BACKENDS), help="What walks."),
    ] = "auto",
    stop: options.Stop = False,
    watching: Annotated[
        float | None,
        typer.Option(
            "--watch", min=0, metavar="SECONDS", help="Say what changed, once in that many seconds."
        ),
    ] = None,
    times: Annotated[int | None, typer.Option(min=1, help="End --watch after that many intervals.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help=OUT_HELP)] = None,
    words: Annotated[bool, typer.Option("--words", help="Write a word for each page to --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Walk the page tables of a live process, a dump or a snapshot as hmm_range_fault() does."""
    from rich.console import Console

    from gpuhmm.capture import prepare, summary_of, walk_capture
    from gpuhmm.results.files import check_suffix, run_table, word_table_of_runs, write_results

    if out is not None:
        check_suffix(out)
    elif words:
        raise typer.BadParameter("--words belongs to --out")
    source = Source(
        pid, dump, snapshot, cr3, levels, maps, start, end, stop, segments, sme_mask, upright_protnone, kernel
    )
    if watching is not None:
        if out is not None or request != "none":
            raise typer.BadParameter("--watch goes with neither --out nor --request")
        watch(source, watching, times, backend, as_json)
        return
    if times is not None:
        raise typer.BadParameter("--times belongs to --watch")
    messages = Console(stderr=True)
    capture = source.read(messages)
    with messages.status("preparing the back end (its first run compiles it, some 15 s)"):
        prepared = prepare(backend)
    # A snapshot is over before a spinner turns, which would only hold it up.
    faulting = messages.status("faulting, on the copy") if request != "none" else contextlib.nullcontext()
    with faulting:
        walked = walk_capture(capture, request=request, backend=prepared)
        summary = summary_of(capture, walked, stopped=stop)
    if out is not None:
        names = [mapping.name for mapping in capture.mappings]
        found = [mapping.runs for mapping in walked.mappings]
        table = word_table_of_runs(found, capture.space.kernel) if words else run_table(found)
        write_results(out, table, summary=dataclasses.asdict(summary), names=names)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(summary), indent=1))
    else:
        _print(summary)


def _print(summary: CaptureSummary) -> None:
    from rich.console import Console

    table = _table(summary, narrow=False)
    terminal = Console()
    if width_of(terminal, table) > terminal.width:
        table = _table(summary, narrow=True)
    console = print_table(table)
    for line in _closing(summary):
        console.print(line, markup=False, soft_wrap=True)


def _table(summary: CaptureSummary, narrow: bool) -> Table:
    """Return the table of mappings; a ``narrow`` one leaves out what follows from the rest."""
    from rich.table import Table
    from rich.text import Text

    total = summary.total
    shown = [title for title, count in _counts(total).items() if title not in _ZERO_HIDDEN or count != "0"]
    if narrow and total.order_0 == total.present:
        shown.remove("4K")
    failed = any(mapping.error for mapping in summary.mappings)
    table = Table(box=None, pad_edge=False, padding=(0, 2 - narrow, 0, 0), show_footer=True)
    table.add_column("from" if narrow else "mapping", f"{len(summary.mappings)} mappings", no_wrap=True)
    table.add_column("perms", no_wrap=True)
    table.add_column("name", no_wrap=True)
    table.add_column("size", byte_size(total.pages << 12), justify="right", no_wrap=True)
    for title in shown:
        table.add_column(title, _counts(total)[title], justify="right", no_wrap=True)
    if summary.faults_modelled:
        table.add_column("faults", f"{total.faults}", justify="right", no_wrap=True)
    if failed:
        table.add_column("failed", no_wrap=True)
    for mapping in summary.mappings:
        counts = _counts(mapping.counts)
        row: list[str | Text] = [
            f"{mapping.start:x}" if narrow else f"{mapping.start:x}-{mapping.end:x}",
            mapping.perms,
            Text(_short(mapping.name, 16 if narrow else 32)),
            byte_size(mapping.size),
            *(counts[title] for title in shown),
        ]
        row += [f"{mapping.counts.faults}"] if summary.faults_modelled else []
        row += [mapping.error or ""] if failed else []
        table.add_row(*row)
    return table


#: Columns that are left out where they are 0 in every mapping.
_ZERO_HIDDEN = ("2M", "1G", "swapped", "special", "errors")


def _counts(counts: PageCounts) -> dict[str, str]:
    """Return the cells of the counting columns by title; all are pages of 4 KiB."""
    numbers = {
        "present": counts.present,
        "4K": counts.order_0,
        "2M": counts.order_9,
        "1G": counts.order_18,
        "writable": counts.writable,
        "swapped": counts.swapped,
        "special": counts.special,
        "holes": counts.holes,
        "errors": counts.errors,
        "run": "-" if counts.longest_run is None else counts.longest_run,
    }
    return {title: str(number) for title, number in numbers.items()}


def _closing(summary: CaptureSummary) -> Iterator[str]:
    yield f"{_what(summary)}; numbers are pages of 4 KiB, run is the longest with PFNs in a row"
    yield _printable(summary.walked_as)
    yield (
        f"walked {summary.pages_walked} pages in {summary.walk_seconds * 1e3:.3g} ms, "
        f"{summary.calls} call{'s' if summary.calls > 1 else ''}: "
        f"{summary.pages_per_second:.3g} pages/s on the {summary.backend} back end ({summary.device})"
    )
    if summary.pid is not None:
        yield _how_read(summary)
    yield f"write bit: {summary.write_rule}"
    for note in summary.notes:
        yield f"note: {note}"


def _what(summary: CaptureSummary) -> str:
    """Return what was walked: a process, what a dump says, or a snapshot of either."""
    if summary.command is None:
        return _printable(summary.source)
    process = f"pid {summary.pid} ({_printable(summary.command)}), Linux {summary.kernel}"
    return process + (f", {_printable(summary.source)}" if summary.source else "")


def _how_read(summary: CaptureSummary) -> str:
    used = [
        name
        for name, wanted in (("PAGEMAP_SCAN", summary.pagemap_scan), ("kpageflags", summary.kpageflags))
        if wanted
    ]
    return (
        f"read in {summary.read_seconds * 1e3:.3g} ms from maps, smaps, pagemap"
        + "".join(f", {name}" for name in used)
        + (", the process being stopped" if summary.stopped else "")
        + ("; PFNs are real" if summary.pfns == "real" else "; PFNs are numbered by us")
    )


def _short(name: str, length: int) -> str:
    """Return a name of at most ``length`` characters: of a path, its end says most."""
    name = _printable(name)
    if len(name) <= length:
        return name
    return "\N{HORIZONTAL ELLIPSIS}" + name[1 - length :]


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
