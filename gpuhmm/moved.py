"""Modules under the names that they had before they moved, for scripts that were written then.

Nothing in the package uses it.  A name goes from the table when no script needs it any more.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Old name, without ``gpuhmm.``, and new one; what lies below moves along.  The first that fits counts.
MOVED = {
    "adapters": "dump",
    "coalesce.uvm": "coalesce.drivers.uvm",
    "fault.entry": "mm.entry",
    "fault": "memory.fault",
    "fault_model": "memory.fault.model",
    "machine": "memory.pages",
    "process.walk": "process",
    "space": "memory.space",
    "vma": "mm.vma",
}


class _Moved(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if _new_name(fullname) is not None else None

    def exec_module(self, module: ModuleType) -> None:
        new = _new_name(module.__name__)
        assert new is not None
        sys.modules[module.__name__] = importlib.import_module(new)


def _new_name(fullname: str) -> str | None:
    name = fullname.removeprefix("gpuhmm.")
    for old, new in MOVED.items():
        if name == old or name.startswith(old + "."):
            return f"gpuhmm.{new}{name.removeprefix(old)}" if name != fullname else None
    return None


def find_moved_modules() -> None:
    """Let ``import`` find the old names, ahead of what the new folders would give for them."""
    sys.meta_path.insert(0, _Moved())
