"""The registry of back ends, and the entry point that they share."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from dataclasses import dataclass
from typing import Any

from gpuhmm.errors import ArrayTypeError, BackendError
from gpuhmm.hmm.ranges import HmmRange
from gpuhmm.hmm.runs import HmmRuns

#: Name -> module that defines ``hmm_range_fault(range_)``; the module of that name and ``_runs`` beside it
#: defines ``hmm_range_fault_runs(request)``.
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


def resolve_backend(name: str = "auto") -> BackendInfo:
    """Return the back end of that name; ``auto`` is ``cuda`` where a GPU can be used, else ``cpu``.

    ValueError for an unknown name, BackendError for ``cuda`` where it cannot run.
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
    threads = 1 if name == "reference" else _threads()
    return BackendInfo(name, f"{_cpu_model()}, {threads} thread{'s' if threads > 1 else ''}")


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
    if backend == "auto":
        backend = resolve_backend().name
    elif backend not in BACKENDS or backend == "cuda":
        resolve_backend(backend)
    if range_.on_device and backend != "cuda":
        raise ArrayTypeError(
            f"hmm_pfns must be a numpy array for the {backend} back end (got a device array)"
        )
    if stream is not None and backend != "cuda":
        raise ValueError(f"only the cuda back end takes a stream (got {stream!r} for {backend})")
    module: Any = importlib.import_module(BACKENDS[backend])
    ret: int = module.hmm_range_fault(range_) if stream is None else module.hmm_range_fault(range_, stream)
    return ret


def hmm_range_fault_runs(request: HmmRuns, backend: str = "auto") -> int:
    """Walk as :func:`hmm_range_fault` does, and leave the words as runs in ``request.runs``.

    All pages make the request of ``default_flags``.  The time follows what the page tables hold, not
    the size of the range: a hole is one run.  Return 0 or a negative errno; on an error the runs end
    at the failing page.
    """
    request.check()
    if backend == "auto":
        backend = resolve_backend().name
    elif backend not in BACKENDS or backend == "cuda":
        resolve_backend(backend)
    module: Any = importlib.import_module(BACKENDS[backend] + "_runs")
    ret: int = module.hmm_range_fault_runs(request)
    return ret


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


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
