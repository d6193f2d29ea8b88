"""Back ends by name, and the entry points that they share: a back end resolves, the entry point settles."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from dataclasses import dataclass
from functools import cache
from typing import Any

from gpuhmm.errors import ArrayTypeError, BackendError
from gpuhmm.hmm.ranges import HmmRange
from gpuhmm.hmm.runs import HmmRuns
from gpuhmm.hmm.settle import settle

#: Name -> module of the walk.  It defines ``resolver(range_)``, the one of that name and ``_runs`` after it
#: ``runs_resolver(request)``, that with ``_batch`` ``batch_resolver(batch)``.
BACKENDS = {
    "reference": "gpuhmm.kernels.reference",
    "cpu": "gpuhmm.kernels.cpu",
    "cuda": "gpuhmm.kernels.cuda",
}


@dataclass(frozen=True)
class BackendInfo:
    """Which back end runs, and on what, in words."""

    name: str
    device: str


@cache
def resolve_backend(name: str = "auto") -> BackendInfo:
    """Return the back end of that name; ``auto`` is ``cuda`` where a GPU can be used, else ``cpu``.

    The answer is kept for the life of the process: ``resolve_backend.cache_clear()`` makes the next call
    look for a GPU again.  ValueError for an unknown name, BackendError for ``cuda`` where it cannot run.
    """
    if name == "auto":
        try:
            return resolve_backend("cuda")
        except BackendError:
            return resolve_backend("cpu")
    if name not in BACKENDS:
        raise ValueError(f"backend must be auto or one of {', '.join(BACKENDS)} (got {name!r})")
    if name == "cuda":
        return BackendInfo(name, _cuda_device())
    threads = 1 if name == "reference" else len(os.sched_getaffinity(0))
    return BackendInfo(name, f"{_cpu_model()}, {threads} thread{'s' if threads > 1 else ''}")


def backend_module(info: BackendInfo, package: str | None = None, suffix: str = "") -> Any:
    """Return a module of a back end: in ``package`` the one of its name, else that of its walk.

    ``suffix`` follows its name.
    """
    name = f"{package}.{info.name}" if package is not None else BACKENDS[info.name]
    return importlib.import_module(name + suffix)


def hmm_range_fault(range_: HmmRange, backend: str = "auto", stream: Any = None) -> int:
    """Walk ``range_`` as Linux's ``hmm_range_fault()`` does: return 0 or a negative errno.

    ``range_.hmm_pfns`` is written in place.  -EBUSY: the notifier's sequence is stale.  -EFAULT,
    -EPERM: a page that was asked for cannot be had.  -EINVAL: the range is empty.  From v7.3 on a fault
    that found no memory is -ENOMEM, one that failed with VM_FAULT_FALLBACK alone -EINVAL, and one that gave
    the mmap lock up although it was not allowed to -EBUSY.  On an error the
    words at and above the failing page keep their input.  ``backend`` is ``reference``, ``cpu``,
    ``cuda`` or ``auto``.  ``stream``, a numba CUDA stream, is where the ``cuda`` back end does its work;
    it is over on return.  ValueError and TypeError for what the caller did wrong, before anything
    is changed.

    Source: mm/hmm.c:hmm_range_fault (v5.18).
    """
    range_.check()
    return walk_range(range_, resolve_backend(backend), stream)


def walk_range(range_: HmmRange, info: BackendInfo, stream: Any = None) -> int:
    """As :func:`hmm_range_fault`, of a range that was checked since it last changed."""
    if range_.on_device and info.name != "cuda":
        raise ArrayTypeError(
            f"hmm_pfns must be a numpy array for the {info.name} back end (got a device array)"
        )
    if stream is not None and info.name != "cuda":
        raise ValueError(f"only the cuda back end takes a stream (got {stream!r} for {info.name})")
    module = backend_module(info)
    return settle(range_, module.resolver(range_) if stream is None else module.resolver(range_, stream))


def hmm_range_fault_runs(request: HmmRuns, backend: str = "auto") -> int:
    """Walk as :func:`hmm_range_fault` does, and leave the words as runs in ``request.runs``.

    All pages make the request of ``default_flags``.  The time follows what the page tables hold, not
    the size of the range: a hole is one run.  Return 0 or a negative errno; on an error the runs end
    at the failing page.
    """
    request.check()
    return walk_runs(request, resolve_backend(backend))


def walk_runs(request: HmmRuns, info: BackendInfo) -> int:
    """As :func:`hmm_range_fault_runs`, of a request that was checked since it last changed."""
    return settle(request, backend_module(info, suffix="_runs").runs_resolver(request))


def _cuda_device() -> str:
    if importlib.util.find_spec("numba_cuda") is None:
        raise BackendError(
            "the cuda back end needs numba-cuda: pip install 'gpuhmm[cuda13]' (or [cuda12], by your driver)"
        )
    from numba.core import config

    cuda: Any = importlib.import_module("numba.cuda")
    if config.ENABLE_CUDASIM:
        return "CUDA simulator"
    if not cuda.is_available():
        raise BackendError(
            "the cuda back end found no usable CUDA device or driver; "
            "set NUMBA_ENABLE_CUDASIM=1 before Python starts to use the simulator"
        )
    return str(cuda.get_current_device().name)


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
