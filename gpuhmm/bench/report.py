"""What was measured on: the machine, the versions, the commit; and the file that keeps it with the rows."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from gpuhmm.bench.timing import Row
from gpuhmm.hmm.backends import BackendInfo
from gpuhmm.results.partial_file import whole_file
from gpuhmm.version import __version__

_PACKAGES = ("numpy", "numba", "numba-cuda", "llvmlite")


@dataclass(frozen=True)
class BenchReport:
    """One run of the bench; ``devices`` maps each back end to what it ran on."""

    date: str
    commit: str | None
    machine: dict[str, str | int]
    versions: dict[str, str]
    devices: dict[str, str]
    rows: list[Row]


def report(backends: list[BackendInfo], rows: list[Row]) -> BenchReport:
    """Return the rows with everything that tells them apart from another run's."""
    versions = {"gpuhmm": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return BenchReport(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        machine={
            "kernel": platform.release(),
            "cpus": os.cpu_count() or 1,
            "omp_proc_bind": os.environ.get("OMP_PROC_BIND", ""),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        versions=versions,
        devices={info.name: info.device for info in backends},
        rows=rows,
    )


def write_json(made: BenchReport, path: Path) -> None:
    """Write a report next to ``path`` and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside:
        beside.write_text(as_json(made))


def as_json(made: BenchReport) -> str:
    """Return a report as JSON."""
    return json.dumps(asdict(made), indent=1) + "\n"


def available_bytes() -> int:
    """Return the memory that could be had without swapping."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _commit() -> str | None:
    """Return the commit of the checkout that the package lies in, with + if it was changed."""
    folder = Path(__file__).parent.parent
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
