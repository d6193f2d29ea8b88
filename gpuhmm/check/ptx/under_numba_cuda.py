"""Putting the machine under numba.cuda, for the rest of a process."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np

from gpuhmm.check.ptx.build import c_compiler
from gpuhmm.check.ptx.driver import COMPUTE_CAPABILITY, Device, Driver
from gpuhmm.check.ptx.machine import Array, Kernel, Machine, Options
from gpuhmm.errors import BackendError
from gpuhmm.hmm.backends import resolve_backend

_installed: list[Machine] = []


def install(options: Options | None = None) -> Machine:
    """Make the machine the one CUDA device of this process, and return it.

    To be called before anything uses a device; the second time the same machine gets new options.
    BackendError where numba-cuda or a C compiler is missing, or in numba's simulator.
    """
    if _installed:
        _installed[0].options = options or Options()
        return _installed[0]
    if importlib.util.find_spec("numba_cuda") is None:
        raise BackendError(
            "the PTX machine needs numba-cuda: pip install 'gpuhmm[cuda13]' (no GPU, no driver)"
        )
    from numba.core import config

    if config.ENABLE_CUDASIM:
        raise BackendError("the PTX machine runs compiled kernels: unset NUMBA_ENABLE_CUDASIM")
    compiler = c_compiler()
    machine = Machine(options)
    cuda: Any = importlib.import_module("numba.cuda")
    driver: Any = importlib.import_module("numba.cuda.cudadrv.driver")
    devices: Any = importlib.import_module("numba.cuda.cudadrv.devices")
    dispatcher: Any = importlib.import_module("numba.cuda.dispatcher")
    name = "PTX machine, sm_{}{}, {}".format(*COMPUTE_CAPABILITY, compiler.rpartition("/")[2])
    driver.driver = devices.driver = Driver(machine, Device(name, driver.Context), driver)
    driver._logger = driver.make_logger()  # as the first use of the real driver does
    devices._runtime = devices._Runtime()
    devices.gpus = cuda.gpus = devices._runtime.gpus
    driver._to_core_stream = lambda stream: stream  # cuda.core would ask the real driver
    launcher = _Launcher(machine, cuda)
    dispatcher._Kernel.bind = lambda _kernel: None
    dispatcher._Kernel.launch = launcher.launch_of()
    resolve_backend.cache_clear()  # there is a device now
    _installed.append(machine)
    return machine


class _Launcher:
    """What ``numba.cuda.dispatcher._Kernel.launch`` does, with the machine's launch at its end."""

    def __init__(self, machine: Machine, cuda: Any) -> None:
        self.machine = machine
        self.cuda = cuda

    def launch_of(self) -> Any:
        """Return the method."""

        def launch(
            kernel: Any, args: Any, griddim: Any, blockdim: Any, stream: Any = 0, sharedmem: int = 0
        ) -> None:
            self.launch(kernel, list(args), griddim, blockdim, stream, sharedmem)

        return launch

    def launch(
        self, kernel: Any, args: list[Any], griddim: Any, blockdim: Any, stream: Any, shared: int
    ) -> None:
        """Marshal the arguments as numba-cuda does, and queue the launch."""
        if tuple(griddim[1:]) != (1, 1) or tuple(blockdim[1:]) != (1, 1) or shared:
            raise NotImplementedError(
                "the PTX machine knows grids and blocks of one dimension, without dynamic shared memory "
                f"(got {griddim}, {blockdim}, {shared} bytes)"
            )
        here: list[tuple[Any, np.ndarray]] = []  # arrays of the host go there and come back
        for i, value in enumerate(args):
            if type(value) is np.ndarray:
                args[i] = self.cuda.to_device(value)
                here.append((args[i], value))
        marshalled: list[Any] = []
        arrays = []
        for type_, value in zip(kernel.argument_types, args, strict=True):
            before = len(marshalled)
            kernel._prepare_args(type_, value, stream, [], marshalled)
            if hasattr(type_, "ndim") and value.size:
                _, _, count, item, address = map(int, marshalled[before : before + 5])
                arrays.append(Array(address, _extent(marshalled[before + 5 :], count, item), item))
        numbers = [int(getattr(value, "value", value)) for value in marshalled]
        compiled = self._compiled(kernel)
        self.machine.launch(compiled, numbers, arrays, griddim[0], blockdim[0], int(stream), keep=args)
        for device, host in here:
            device.copy_to_host(host)

    def _compiled(self, kernel: Any) -> Kernel:
        linked = bool(self.machine.options.linked and kernel._codelibrary._lto)
        kernels = self.machine.kernels
        if (kernel, linked) not in kernels:
            library = kernel._codelibrary
            ptx = library.get_lto_ptx() if linked else library.get_asm_str()
            kernels[kernel, linked] = Kernel.of(kernel.py_func.__name__, ptx)
        return kernels[kernel, linked]


def _extent(shape_and_strides: list[Any], count: int, item: int) -> int:
    """Return the bytes from the first to behind the last item; ValueError for a negative stride."""
    half = len(shape_and_strides) // 2
    shape, strides = map(list, (shape_and_strides[:half], shape_and_strides[half:]))
    if any(stride < 0 for stride in strides):
        raise ValueError(f"an array's strides must not be negative (got {strides})")
    extent = item + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return int(extent) if count else 0
