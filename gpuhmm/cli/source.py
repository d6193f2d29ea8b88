"""What a command looks at: a live process, a memory dump, or a snapshot of either."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from gpuhmm.capture import Capture
    from gpuhmm.image import MemorySource, Segment


@dataclass(frozen=True)
class Source:
    """Where to read from: ``pid``, ``dump`` or ``snapshot``; none of them means this process."""

    pid: int | None = None
    dump: Path | None = None
    snapshot: Path | None = None
    cr3: int | None = None
    levels: int | None = None
    maps: Path | None = None
    start: int | None = None
    end: int | None = None
    stop: bool = False
    segments: tuple[Segment, ...] | None = None
    sme_mask: int | None = None
    upright_protnone: bool = False
    kernel: str | None = None

    def __post_init__(self) -> None:
        given = [
            name
            for name, value in (("--pid", self.pid), ("--dump", self.dump), ("SNAPSHOT", self.snapshot))
            if value is not None
        ]
        if len(given) > 1:
            raise typer.BadParameter(f"one source at a time (got {' and '.join(given)})")
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise typer.BadParameter(f"--start must lie below --end (got {self.start:#x}, {self.end:#x})")
        if self.dump is None:
            options = ("cr3", "levels", "maps", "segments", "sme_mask", "upright_protnone")
            wrong = [
                f"--{name.replace('_', '-')}" for name in options if getattr(self, name) not in (None, False)
            ]
            if wrong:
                raise typer.BadParameter(f"{' and '.join(wrong)} belong to --dump")
        if self.stop and (self.dump is not None or self.snapshot is not None):
            raise typer.BadParameter("--stop is for live processes")
        if self.kernel is not None and self.snapshot is not None:
            raise typer.BadParameter("--kernel is for processes and dumps: a snapshot keeps its kernel")

    @property
    def is_live(self) -> bool:
        """True for a process, which can be read again."""
        return self.dump is None and self.snapshot is None

    def open_dump(self) -> MemorySource:
        """Return the memory of the dump."""
        from gpuhmm.image import open_image

        assert self.dump is not None
        layout, mask, upright = self.segments or (), self.sme_mask, self.upright_protnone
        return open_image(self.dump, segments=layout, sme_mask=mask, upright_protnone=upright)

    def read(self, messages: Console) -> Capture:
        """Return what is there now."""
        if self.snapshot is not None:
            return self._snapshot()
        if self.dump is not None:
            from gpuhmm.dump import read_dump

            with self.open_dump() as memory:
                return read_dump(
                    memory,
                    self.cr3,
                    levels=self.levels,
                    maps=self.maps,
                    kernel=self.kernel,
                    start=self.start or 0,
                    end=self.end,
                )
        from gpuhmm.process import read_process, stopped

        who = os.getpid() if self.pid is None else self.pid
        held = stopped(who) if self.stop else contextlib.nullcontext()
        with held, _progress(messages) as progress:
            return read_process(
                who, start=self.start or 0, end=self.end, kernel=self.kernel, progress=progress
            )

    def _snapshot(self) -> Capture:
        from gpuhmm.capture import cut_capture
        from gpuhmm.snapshot import load_snapshot

        assert self.snapshot is not None
        capture = load_snapshot(self.snapshot).as_capture()
        if self.start is None and self.end is None:
            return capture
        return cut_capture(capture, self.start or 0, self.end)


@contextlib.contextmanager
def _progress(messages: Console) -> Iterator[Callable[[int, int], None]]:
    """Show how far reading is, on a terminal; yield what is called with windows read and in all."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("reading pagemap"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show
