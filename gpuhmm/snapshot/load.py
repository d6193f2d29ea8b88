"""Reading a snapshot: checked first, then mapped."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpuhmm.capture.from_space import capture_of_space, mapping_of
from gpuhmm.capture.record import Capture
from gpuhmm.memory.space import AddressSpace
from gpuhmm.snapshot.arrays import map_array
from gpuhmm.snapshot.captured import capture_of_parts
from gpuhmm.snapshot.manifest import Manifest, parse
from gpuhmm.snapshot.page_state import set_page_state
from gpuhmm.snapshot.parts import space_of_parts


@dataclass(frozen=True)
class Snapshot:
    """A loaded snapshot.

    ``space`` can be walked, faulted and changed; none of that reaches the folder.  ``capture`` is what
    was captured of a process or a dump, None where a plain address space was saved.  ``origin`` says
    where it came from.
    """

    path: Path
    manifest: Manifest
    space: AddressSpace
    capture: Capture | None

    @property
    def origin(self) -> dict[str, Any]:
        """Where the address space came from; ``kind`` is process, dump or space."""
        return dict(self.manifest.parts.get("origin", {}))

    def as_capture(self) -> Capture:
        """Return what was captured; of a plain address space, a capture whose mappings have no names."""
        if self.capture is not None:
            return replace(self.capture, source=self.capture.source or f"snapshot {self.path}")
        return capture_of_space(
            self.space,
            [mapping_of(vma) for vma in self.space.vmas],
            source=f"snapshot {self.path}",
            notes=[],
            origin=self.origin,
        )


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Return the manifest of the snapshot in folder ``path`` and look at nothing else."""
    return parse(Path(path))


def load_snapshot(path: str | os.PathLike[str], *, verify: bool = True) -> Snapshot:
    """Return the snapshot in folder ``path``, its arrays mapped copy-on-write.

    ``verify`` reads every file for its checksum; without it only what a walk needs is ever read.
    SnapshotError for a folder that is no snapshot, a file that is missing or damaged, a newer version,
    tables that point where there is nothing, and page state that contradicts itself.
    """
    folder = Path(path)
    manifest = parse(folder)
    arrays = {name: map_array(folder, name, record, verify) for name, record in manifest.arrays.items()}
    space = space_of_parts(manifest.parts.get("space", {}), arrays)
    if "page_state" in manifest.parts:
        set_page_state(space, manifest.parts["page_state"], arrays)
    capture = None
    if "capture" in manifest.parts:
        capture = capture_of_parts(manifest.parts, arrays, space)
    return Snapshot(folder, manifest, space, capture)
