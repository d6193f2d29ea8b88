"""``gpuhmm walk --watch``: a process captured again and again, and what changed in between."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from gpuhmm.cli.source import Source

if TYPE_CHECKING:
    from gpuhmm.capture import Capture
    from gpuhmm.watch import Changes

#: Mappings that are listed for each interval; those that changed most.
_LISTED = 8


def watch(source: Source, seconds: float, times: int | None, backend: str, as_json: bool) -> None:
    """Print what changed, once an interval, ``times`` times or until interrupted.

    Intervals are counted from the start of one capture to that of the next.
    """
    from rich.console import Console

    from gpuhmm.watch import compare

    if not source.is_live:
        raise typer.BadParameter("--watch is for live processes")
    messages = Console(stderr=True)
    begun = time.monotonic()
    before = source.read(messages)
    compare(before, before, backend=backend)  # compiles, before time is counted
    done = 0
    try:
        while times is None or done < times:
            time.sleep(max(0.0, begun + seconds - time.monotonic()))
            begun = time.monotonic()
            after = source.read(messages)
            _report(after, compare(before, after, backend=backend), as_json)
            before = after
            done += 1
    except KeyboardInterrupt:
        return  # how a user ends it


def _report(after: Capture, changes: Changes, as_json: bool) -> None:
    counts = changes.counts()
    listed = list(_by_mapping(after, changes))
    if as_json:
        assert after.process is not None
        record = {
            "time": time.time(),
            "pid": after.process.identity.pid,
            "present": sum(after.resident),
            **counts,
            "moved": counts["moved"] if changes.moves_known else None,
            "new_mappings": changes.new_mappings,
            "gone_mappings": changes.gone_mappings,
            "pages_compared": changes.pages_compared,
            "read_seconds": after.seconds,
            "compare_seconds": changes.seconds,
            "backend": changes.backend.name,
            "mappings": [row for _, row in listed],
        }
        typer.echo(json.dumps(record))
        return
    said = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    said += [f"{changes.new_mappings} new mappings"] * bool(changes.new_mappings)
    said += [f"{changes.gone_mappings} mappings gone"] * bool(changes.gone_mappings)
    moved = "" if changes.moves_known else ", moves unknown"
    typer.echo(
        f"{time.strftime('%H:%M:%S')}  {sum(after.resident)} pages present; {', '.join(said) or 'no change'}"
        f"  (read in {after.seconds * 1e3:.3g} ms, {changes.pages_compared} pages compared in "
        f"{changes.seconds * 1e3:.3g} ms on the {changes.backend.name} back end{moved})"
    )
    for _, row in sorted(listed, key=lambda item: -item[0])[:_LISTED]:
        name = "".join(letter if letter.isprintable() else "?" for letter in row["name"])
        parts = [f"{row[kind]} {kind.replace('_', ' ')}" for kind in counts if row.get(kind)]
        typer.echo(f"    {row['start']:x}-{row['end']:x} {row['perms']} {name or '-'}: {', '.join(parts)}")


def _by_mapping(after: Capture, changes: Changes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield how many pages changed in each mapping that there still is, and which change it was."""
    import numpy as np

    from gpuhmm.watch import Change

    runs = changes.runs
    ends = runs["va"] + (runs["npages"] << np.uint64(12))
    for mapping in after.mappings:
        low, high = np.searchsorted(ends, mapping.start, "right"), np.searchsorted(runs["va"], mapping.end)
        some = runs[low:high]
        inside = np.minimum(ends[low:high], np.uint64(mapping.end)) - np.maximum(
            some["va"], np.uint64(mapping.start)
        )
        pages = np.bincount(some["change"], weights=inside >> np.uint64(12), minlength=len(Change))
        counts = {change.name.lower(): int(pages[change]) for change in Change if pages[change]}
        if counts:
            row = {"start": mapping.start, "end": mapping.end, "perms": mapping.perms, "name": mapping.name}
            yield sum(counts.values()), {**row, **counts}
