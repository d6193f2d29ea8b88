"""What a command looks at: a live process, a memory dump, or a snapshot of either."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuhmm.cli.parameters import kernel_name

if TYPE_CHECKING:
    from rich.console import Console

    from gpuhmm.capture import Capture

#: The option of every command that walks what a kernel has or had.
Kernel = Annotated[
    str | None,
    typer.Option(
        parser=kernel_name,
        metavar="NAME",
        help="Walk as this kernel: v6.12, or v6.12:no-device-private,no-migration,no-memory-failure for "
        "what its config lacks [default: the kernel that runs, or the one that the dump names].",
    ),
]

#: Help of the options that every command with a source has.
SNAPSHOT_HELP = "Folder of a snapshot, instead of a process."
PID_HELP = "The process; without it, this one."
START_HELP = "First address, decimal or 0x..."
END_HELP = "Address to stop before."
STOP_HELP = "Stop the process while it is read."
DUMP_HELP = "A memory dump instead of a process: raw, ELF core or LiME."
CR3_HELP = "CR3 of the process in the dump."
LEVELS_HELP = "Levels of the dump's page tables, 4 or 5, if it does not say."
MAPS_HELP = "Mappings of the dump, in the form of /proc/PID/maps; else from its entries."


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
            wrong = [
                name
                for name, value in (("--cr3", self.cr3), ("--levels", self.levels), ("--maps", self.maps))
                if value is not None
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

    def read(self, messages: Console) -> Capture:
        """Return what is there now."""
        if self.snapshot is not None:
            return self._snapshot()
        if self.dump is not None:
            from gpuhmm.dump import read_dump

            return read_dump(
                self.dump,
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
