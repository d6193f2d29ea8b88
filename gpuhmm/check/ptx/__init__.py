"""Compiled CUDA kernels on a machine without a GPU: a driver under numba-cuda that runs their PTX.

``parse`` reads PTX, ``operands``, ``expressions`` and ``translate`` write it as C, ``build`` compiles that
beside ``simt.h``, which runs warps in lock step and checks every access.  ``memory`` and ``streams`` are the
device's memory and queues, ``machine`` launches, finds and counts, ``driver`` answers numba-cuda,
``under_numba_cuda`` puts it there.

Not modelled: ptxas and the SASS that it makes, caches, weak memory, time.
"""

from gpuhmm.check.ptx.machine import Event, Kernel, Machine, Options
from gpuhmm.check.ptx.parse import PtxError
from gpuhmm.check.ptx.under_numba_cuda import install

__all__ = ["Event", "Kernel", "Machine", "Options", "PtxError", "install"]
