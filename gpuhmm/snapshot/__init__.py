"""Snapshots: an address space and where it came from, in a folder that is mapped when it is loaded."""

from gpuhmm.snapshot.load import Snapshot, load_snapshot, read_manifest
from gpuhmm.snapshot.manifest import VERSION, is_snapshot
from gpuhmm.snapshot.save import save_snapshot

__all__ = ["VERSION", "Snapshot", "is_snapshot", "load_snapshot", "read_manifest", "save_snapshot"]
