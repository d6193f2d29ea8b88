"""From C source to a loaded kernel: the C compiler of this machine, and a folder of what it made."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

from gpuhmm.errors import BackendError
from gpuhmm.kernels.compile_cache import cache_base

_HEADER = Path(__file__).with_name("simt.h")
#: Wrapping arithmetic and words of several types at one address are meant.
_FLAGS = ("-O1", "-w", "-shared", "-fPIC", "-fwrapv", "-fno-strict-aliasing")
#: Kernels that nobody loaded for that long are removed, in seconds.
_KEPT = 14 * 24 * 3600


@cache
def c_compiler() -> str:
    """Return the C compiler: what CC names, else cc, gcc or clang.  BackendError where there is none."""
    named = os.environ.get("CC")
    for name in (named,) if named else ("cc", "gcc", "clang"):
        found = shutil.which(name)
        if found:
            return found
    raise BackendError(
        f"the PTX machine needs a C compiler: install gcc or clang, or set CC (got {named or 'none of them'})"
    )


def load_kernel(source: str) -> ctypes.CDLL:
    """Return the compiled ``source``, which includes simt.h; from the cache where it was compiled before."""
    folder = _folder()
    digest = hashlib.sha256("\0".join((c_compiler(), *_FLAGS, _HEADER.read_text(), source)).encode())
    library = folder / f"{digest.hexdigest()[:24]}.so"
    if library.exists():
        os.utime(library)
    else:
        own = folder / f"{library.stem}-{os.getpid()}"  # several processes may compile the same
        c_file, made = own.with_suffix(".c"), own.with_suffix(".made")
        c_file.write_text(source)
        command = [c_compiler(), *_FLAGS, f"-I{_HEADER.parent}", "-o", str(made), str(c_file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        c_file.unlink()
        if done.returncode:
            raise BackendError(f"the C compiler failed on a translated kernel: {done.stderr[:2000]}")
        made.rename(library)
    return ctypes.CDLL(str(library))


@cache
def _folder() -> Path:
    folder = cache_base() / "ptx"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # nothing can be kept: for this process only
        folder = Path(tempfile.mkdtemp(prefix="gpuhmm-ptx-"))
    for old in folder.iterdir():
        if time.time() - old.stat().st_mtime > _KEPT:
            old.unlink(missing_ok=True)
    return folder
