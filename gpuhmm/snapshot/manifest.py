"""The manifest of a snapshot: what is in the folder, and the checksum of each file and of itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuhmm.errors import SnapshotError

FILE = "manifest.json"
FORMAT = "gpuhmm snapshot"

#: Raised when a reader of this version would misread what is written; a part that is added does not.
VERSION = 1

_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class ArrayRecord:
    """One ``.npy`` file: dtype as NumPy writes it, shape, size of the file in bytes, its SHA-256."""

    dtype: str
    shape: list[int]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    ``parts`` holds the scalars of each part by its name, ``arrays`` the files by the name of the array.
    """

    version: int
    gpuhmm: str
    created: str
    parts: dict[str, Any]
    arrays: dict[str, ArrayRecord]

    def to_json(self) -> str:
        """Return the text of the file, checksum included."""
        content = {
            "format": FORMAT,
            "version": self.version,
            "gpuhmm": self.gpuhmm,
            "created": self.created,
            "parts": self.parts,
            "arrays": {name: vars(record) for name, record in self.arrays.items()},
        }
        return json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n"


def is_snapshot(path: str | Path) -> bool:
    """Return whether ``path`` is a folder with a manifest."""
    return (Path(path) / FILE).is_file()


def parse(path: Path) -> Manifest:
    """Return the manifest of the snapshot in folder ``path``.

    SnapshotError for a folder without one, one that is damaged, and one of a newer version.
    """
    file = path / FILE
    if not path.is_dir():
        raise SnapshotError(f"{path} must be the folder of a snapshot")
    if not file.is_file():
        raise SnapshotError(f"{path} is no snapshot: it has no {FILE}")
    if file.stat().st_size > _MAX_BYTES:
        raise SnapshotError(f"{file} is too large for a manifest ({file.stat().st_size} bytes)")
    try:
        content = json.loads(file.read_bytes())
        wanted = content.pop("sha256")
        if content["format"] != FORMAT:
            raise SnapshotError(f"{file} is no manifest of a snapshot (its format is {content['format']!r})")
        version = int(content["version"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, SnapshotError):
            raise
        raise SnapshotError(f"{file} is damaged: it is no manifest of a snapshot ({error})") from None
    # Before the checksum: a newer version may compute another one.
    if version > VERSION:
        raise SnapshotError(
            f"{path} has version {version} of snapshots, this gpuhmm reads up to {VERSION}: it is newer"
        )
    if _digest(content) != wanted:
        raise SnapshotError(f"{file} is damaged: its checksum does not fit")
    try:
        arrays = {name: ArrayRecord(**record) for name, record in content["arrays"].items()}
        for name in arrays:
            if not name.isidentifier():
                raise SnapshotError(f"{file}: the name of an array must be an identifier (got {name!r})")
        return Manifest(version, content["gpuhmm"], content["created"], dict(content["parts"]), arrays)
    except (KeyError, TypeError, AttributeError) as error:
        raise SnapshotError(f"{file} lacks what a manifest must have: {error}") from None


def _digest(content: dict[str, Any]) -> str:
    """Return the SHA-256 of the content, however it is laid out in the file."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
