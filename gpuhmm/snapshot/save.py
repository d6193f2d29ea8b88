"""Writing a snapshot: next to its target, then renamed, so that there is never half of one."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gpuhmm.capture.record import Capture
from gpuhmm.memory.space import AddressSpace
from gpuhmm.snapshot.arrays import write_array
from gpuhmm.snapshot.captured import capture_parts
from gpuhmm.snapshot.manifest import FILE, VERSION, Manifest, is_snapshot
from gpuhmm.snapshot.page_state import page_state_parts
from gpuhmm.snapshot.parts import Arrays, space_parts
from gpuhmm.version import __version__


def save_snapshot(
    path: str | os.PathLike[str],
    source: AddressSpace | Capture,
    *,
    origin: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an address space, or all that was captured of a process or a dump, to the folder ``path``.

    ``origin`` says where a plain space came from, in JSON's types; a capture knows.  The folder appears
    whole or not at all: it is written under another name next to ``path``, to the disk, and renamed.
    FileExistsError where something is there already; ``overwrite`` replaces a snapshot, never anything
    else.  OSError, and nothing left behind, where the disk is full; SnapshotError, and nothing written, for
    page state that cannot be saved.
    """
    target = Path(os.path.abspath(path))
    if os.path.lexists(target) and not (overwrite and is_snapshot(target) and not target.is_symlink()):
        raise FileExistsError(
            f"{target} exists" + ("" if not overwrite else " and is no snapshot: it is not overwritten")
        )
    if isinstance(source, AddressSpace):
        parts: dict[str, Any] = {"origin": origin or {"kind": "space"}}
        arrays: Arrays = {}
        space = source
    else:
        parts, arrays = capture_parts(source)
        space = source.space
    parts["space"], of_space = space_parts(space)
    arrays.update(of_space)
    page_state = page_state_parts(space)
    if page_state is not None:
        parts["page_state"] = page_state[0]
        arrays.update(page_state[1])
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise OSError(error.errno, f"{target} cannot be written: {error.strerror}") from None
    try:
        _write(partial, parts, arrays)
        partial.chmod(0o777 & ~_umask())
        _put(partial, target)
    except OSError as error:
        raise OSError(error.errno, f"{target} was not written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write(folder: Path, parts: dict[str, Any], arrays: Arrays) -> None:
    records = {name: write_array(folder, name, array) for name, array in arrays.items()}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    manifest = Manifest(VERSION, __version__, now, parts, records)
    with open(folder / FILE, "x", encoding="ascii") as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def _put(partial: Path, target: Path) -> None:
    """Rename; a snapshot that is replaced is moved away first, and back if that fails."""
    old = None
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent)) / "snapshot"
        os.rename(target, old)
    try:
        os.rename(partial, target)
    except OSError:
        if old is not None:
            os.rename(old, target)
            old.parent.rmdir()
        raise
    _sync_folder(target.parent)
    if old is not None:
        shutil.rmtree(old.parent, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
