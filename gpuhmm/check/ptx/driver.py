"""What numba-cuda asks of the CUDA driver, answered by the machine.

numba-cuda's own code types arguments, compiles, makes arrays and manages contexts and memory; below it
lie functions of the driver's names.  One that is not here is an error.
Source: CUDA Driver API 13.0; numba-cuda 0.30, ``numba/cuda/cudadrv/driver.py``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from weakref import proxy

import numpy as np

from gpuhmm.check.ptx.machine import Machine
from gpuhmm.check.ptx.streams import DEFAULT, Work

#: The device that kernels are compiled for: an H100.
COMPUTE_CAPABILITY = (9, 0)
_CONTEXT = 1
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
#: What cuMemGetInfo says; numba-cuda keeps freed memory up to a part of it.
_MEMORY = 4 << 30


class Device:
    """The one device, as numba-cuda knows devices."""

    id = 0
    compute_capability = COMPUTE_CAPABILITY

    def __init__(self, name: str, make_context: Any) -> None:
        self.name = name
        self._make_context = make_context
        self._context: Any = None

    def get_primary_context(self) -> Any:
        """Return numba-cuda's context of this device."""
        if self._context is None:
            self._context = self._make_context(proxy(self), _CONTEXT)
        return self._context


class Driver:
    """The functions of the driver, over a machine."""

    is_available = True
    initialization_error = None

    def __init__(self, machine: Machine, device: Device, numba_driver: Any) -> None:
        self.machine = machine
        self._device = device
        self._numba = numba_driver  # the module that this object takes the place in
        self._events: dict[int, Work | None] = {}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the PTX machine does not know {name} of the CUDA driver")

    def ensure_initialized(self) -> None:
        """Do nothing: the machine is ready."""

    # devices and contexts

    def get_device_count(self) -> int:
        """Return 1."""
        return 1

    def get_device(self, _number: int = 0) -> Device:
        """Return the device."""
        return self._device

    def get_active_context(self) -> AbstractContextManager[Any]:
        """Return numba-cuda's look at the context, which is always there."""
        return self._numba._ActiveContext()

    def cuCtxGetCurrent(self) -> int:
        """Return the context."""
        return _CONTEXT

    def cuCtxGetDevice(self) -> int:
        """Return the device's number."""
        return self._device.id

    def cuCtxPushCurrent(self, _context: int) -> None:
        """Do nothing: there is one context."""

    def cuCtxSynchronize(self) -> None:
        """Do all work."""
        self.machine.note("wait")
        self.machine.streams.wait_for_all()

    # memory

    def cuMemGetInfo(self) -> tuple[int, int]:
        """Return free and total bytes."""
        return max(_MEMORY - self.machine.memory.used(), 0), _MEMORY

    def cuMemAlloc(self, size: int) -> Any:
        """Return the address of new device memory."""
        self.machine.note("allocate", size)
        return self._numba.binding.CUdeviceptr(self.machine.memory.allocate(size).address)

    def cuMemFree(self, address: Any) -> None:
        """Free device memory, without waiting for anything: later than any driver."""
        self.machine.memory.free(int(address))

    def cuMemHostAlloc(self, size: int, _flags: int) -> int:
        """Return the address of new pinned memory."""
        buffer = np.full(max(size, 1), 0xA5, dtype=np.uint8)
        self.machine.pin(int(buffer.ctypes.data), size, buffer)
        return int(buffer.ctypes.data)

    def cuMemFreeHost(self, address: int) -> None:
        """Free pinned memory."""
        self.machine.unpin(int(address))

    def cuMemHostRegister(self, address: int, size: int, _flags: int) -> None:
        """Pin memory of the host."""
        self.machine.pin(int(address), size)

    def cuMemHostUnregister(self, address: int) -> None:
        """Unpin it; it is the caller's, so all work is done first."""
        self.machine.streams.wait_for_all()
        self.machine.unpin(int(address))

    def cuMemcpyHtoD(self, target: int, source: int, size: int) -> None:
        """Copy to the device in the default stream."""
        self.machine.upload(int(target), int(source), size, DEFAULT, waits=True)

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy to the device."""
        self.machine.upload(int(target), int(source), size, int(stream), waits=False)

    def cuMemcpyDtoH(self, target: int, source: int, size: int) -> None:
        """Copy to the host in the default stream, and wait for it."""
        self.machine.download(int(target), int(source), size, DEFAULT, waits=True)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy to the host."""
        self.machine.download(int(target), int(source), size, int(stream), waits=False)

    def cuMemcpyDtoD(self, target: int, source: int, size: int) -> None:
        """Copy on the device in the default stream."""
        self.machine.move(int(target), int(source), size, DEFAULT)

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy on the device."""
        self.machine.move(int(target), int(source), size, int(stream))

    def cuMemsetD8(self, target: int, byte: int, size: int) -> None:
        """Set bytes in the default stream."""
        self.machine.fill(int(target), byte, size, DEFAULT)

    def cuMemsetD8Async(self, target: int, byte: int, size: int, stream: int) -> None:
        """Set bytes."""
        self.machine.fill(int(target), byte, size, int(stream))

    # streams and events

    def cuStreamCreate(self, flags: int) -> int:
        """Return the handle of a new stream."""
        return self.machine.streams.create(blocking=not flags & _NON_BLOCKING)

    def cuStreamDestroy(self, stream: int) -> None:
        """Forget a stream; what is left in it is done when all work is waited for."""
        self.machine.streams.destroy(int(stream))

    def cuStreamSynchronize(self, stream: int) -> None:
        """Do all work of a stream."""
        self.machine.note("wait")
        self.machine.streams.wait(int(stream))

    def cuStreamWaitEvent(self, stream: int, event: int, _flags: int) -> None:
        """Let later work of a stream wait for what an event recorded."""
        self.machine.streams.put(int(stream), _nothing, self._events[int(event)])

    def cuEventCreate(self, _flags: int) -> int:
        """Return the handle of a new event."""
        handle = 1 + max(self._events, default=0)
        self._events[handle] = None
        return handle

    def cuEventDestroy(self, event: int) -> None:
        """Forget an event."""
        del self._events[int(event)]

    def cuEventRecord(self, event: int, stream: int) -> None:
        """Let an event stand for the work that is in a stream now."""
        self._events[int(event)] = self.machine.streams.put(int(stream), _nothing)

    def cuEventSynchronize(self, event: int) -> None:
        """Do the work that an event stands for."""
        self.machine.note("wait")
        self.machine.streams.wait_for(self._events[int(event)])

    def cuEventQuery(self, event: int) -> None:
        """Do the work that an event stands for: who asks often enough must see an end."""
        self.machine.streams.wait_for(self._events[int(event)])


def _nothing() -> None:
    pass
