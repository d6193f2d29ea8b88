"""A cache of compiled code that no edit of the package can leave stale.

numba's own cache looks at the file of the compiled function only; the decisions that it calls live
in other files.  Here the key is a digest of all sources that compiled code can come from.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import caching, event

from gpuhmm.shared import COMPILING

#: The package, and what of it compiled code can come from: an edit elsewhere leaves the cache as it is.
_PACKAGE = Path(__file__).parent.parent
_COMPILED = ("shared.py", "mm", "hmm", "kernels", "memory", "translation", "coalesce")
#: Compiled code of other versions is kept for that long, in seconds.
_KEPT = 14 * 24 * 3600


COMPILING.count(event)


@cache
def cache_folder() -> str:
    """Return the folder of compiled code for the package as it is now."""
    digest = hashlib.sha256(f"{numba.__version__} {np.__version__}".encode())
    for source in sorted(_PACKAGE.rglob("*.py")):
        place = source.relative_to(_PACKAGE)
        if place.parts[0] in _COMPILED:
            digest.update(str(place).encode() + b"\0" + source.read_bytes())
    base = cache_base()
    _drop_old(base)
    return str(base / digest.hexdigest()[:24])


def cache_base() -> Path:
    """Return the folder of all compiled code: GPUHMM_CACHE_DIR, else ``gpuhmm`` in the user's cache."""
    named = os.environ.get("GPUHMM_CACHE_DIR")
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(named) if named else Path(cache) / "gpuhmm"


def _drop_old(base: Path) -> None:
    """Remove the folders of other versions that nobody used for long."""
    with contextlib.suppress(OSError):  # somebody else may clean up as well
        for folder in base.iterdir():
            if re.fullmatch("[0-9a-f]{24}", folder.name) and time.time() - folder.stat().st_mtime > _KEPT:
                shutil.rmtree(folder)


class _PackageLocator(caching.UserWideCacheLocator):  # type: ignore[misc]
    """Finds the cache by the package's sources."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        self._py_file = py_file
        self._lineno = py_func.__code__.co_firstlineno
        self._cache_path = cache_folder()

    def get_source_stamp(self) -> str:
        return os.path.basename(cache_folder())

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _PackageLocator | None:
        locator = cls(py_func, py_file)
        try:
            locator.ensure_cache_path()
        except OSError:
            return None
        return locator


class _PackageCacheImpl(caching.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_PackageLocator,)


class _PackageCache(caching.FunctionCache):  # type: ignore[misc]
    """A function's cache that tells its parallel and its sequential compilation apart."""

    _impl_class = _PackageCacheImpl

    def __init__(self, dispatcher: Any) -> None:
        # numba's key leaves the options out: whichever was compiled first would serve both.
        self._options = repr(sorted(dispatcher.targetoptions.items()))
        super().__init__(dispatcher.py_func)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), self._options)


def cached(dispatcher: Any) -> Any:
    """Return the dispatcher, now loading and saving its code; as it is where no folder is writable."""
    try:
        dispatcher._cache = _PackageCache(dispatcher)
    except (RuntimeError, OSError):
        pass
    return dispatcher
