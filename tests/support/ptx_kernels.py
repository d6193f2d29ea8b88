"""Kernels written in PTX by hand, run on a PTX machine of their own."""

from __future__ import annotations

import numpy as np
import pytest

from gpuhmm.check.ptx import Kernel, Machine, Options
from gpuhmm.check.ptx.build import c_compiler
from gpuhmm.check.ptx.machine import Array
from gpuhmm.errors import BackendError

try:
    c_compiler()
except BackendError as error:
    pytest.skip(str(error), allow_module_level=True)

_HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n"
_REGISTERS = ".reg .pred %p<10>; .reg .b16 %rs<10>; .reg .b32 %r<20>; .reg .b64 %rd<20>;\n"
#: %r0 is the thread's number in the grid, %r1 in its block.
_THREAD = "mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.s32 %r0, %r2, %r3, %r1;\n"


def entry(body, parameters=1, declarations=""):
    """Return a kernel whose parameters, pointers, are in %rd10, %rd11, ..."""
    listed = ", ".join(f".param .u64 p{i}" for i in range(parameters))
    loads = " ".join(f"ld.param.u64 %rd{10 + i}, [p{i}];" for i in range(parameters))
    return (
        f"{_HEAD}{declarations}\n.visible .entry k({listed})\n{{\n{_REGISTERS}{loads}\n{_THREAD}{body}\n}}\n"
    )


def place(item, base="%rd10", to="%rd0"):
    """Return PTX that puts the address of the thread's item of an array in a register."""
    return f"mul.wide.u32 %rd9, %r0, {item}; add.s64 {to}, {base}, %rd9;\n"


def upload(machine, values):
    """Return an Array of the device with these values."""
    data = np.ascontiguousarray(values)
    made = machine.memory.allocate(data.nbytes)
    machine.upload(made.address, data.ctypes.data, data.nbytes, 0, waits=True)
    return Array(made.address, data.nbytes, data.itemsize)


def download(machine, array, dtype=np.uint64):
    """Return what an Array holds."""
    out = np.zeros(array.size // np.dtype(dtype).itemsize, dtype=dtype)
    machine.download(out.ctypes.data, array.address, array.size, 0, waits=True)
    return out


def run(machine, ptx, arrays, grid=1, block=32):
    """Launch a kernel over arrays, wait, and return the kinds of mistakes that were found."""
    kernel = ptx if isinstance(ptx, Kernel) else Kernel.of("k", ptx)
    machine.launch(kernel, [array.address for array in arrays], arrays, grid, block)
    machine.streams.wait_for_all()
    kinds = {kind for where, kind, _ in machine.findings if where == "k"}
    machine.findings.clear()
    return kinds


def new_machine(**options):
    """Return a machine that nothing else uses."""
    return Machine(Options(**options))
