"""Page tables on the device: sent once, then only the tables that changed."""

from __future__ import annotations

import threading
from operator import is_not
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numba import cuda
from numba.core import config

from gpuhmm.mm.x86 import INDEX_MASK, ONE, U64
from gpuhmm.shared import COMPILING

if not config.ENABLE_CUDASIM:
    from numba.cuda.core import event

    COMPILING.count(event)

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

#: The simulator runs every thread as a Python thread: blocks are kept small there.
THREADS = 4 if config.ENABLE_CUDASIM else 128

_mirrors: WeakKeyDictionary[AddressSpace, DeviceTables] = WeakKeyDictionary()
_making = threading.Lock()

_SLOTS = INDEX_MASK + ONE


def device_tables(mm: AddressSpace) -> DeviceTables:
    """Return the device's copy of the tables of ``mm``; it lives as long as ``mm``."""
    with _making:
        if mm not in _mirrors:
            _mirrors[mm] = DeviceTables(mm)
        return _mirrors[mm]


def scatter(rows, pages, table):
    """Store ``pages[i]`` in row ``rows[i]`` of ``table``; one block a page."""
    page = U64(cuda.blockIdx.x)
    slot = U64(cuda.threadIdx.x)
    while slot < _SLOTS:
        table[U64(rows[page]), slot] = pages[page, slot]
        slot = slot + U64(cuda.blockDim.x)


scatter_kernel = cuda.jit(scatter)

#: The kernel with the types of its arguments, for the compile gate.
KERNELS = {scatter_kernel: "Array1, Array2, Array2"}


class DeviceTables:
    """``upper``, ``child`` and ``leaf`` of one address space in device memory."""

    def __init__(self, mm: AddressSpace) -> None:
        # Only the tables are kept: a reference to mm would keep it alive for ever.
        self._tables = mm.page_tables
        self._log = self._tables.watch()
        self._log.upper.update(range(len(self._tables.upper)))
        self._log.leaf.update(range(len(self._tables.leaf)))
        self.upper = _DevicePool(np.uint64)
        self.child = _DevicePool(np.int32)
        self.leaf = _DevicePool(np.uint64)
        self._sent_areas: tuple[np.ndarray, np.ndarray] | None = None
        self._areas: tuple[Any, Any] | None = None
        self._syncing = threading.Lock()  # several threads may walk at once
        #: Tables sent so far, and transfers that it took.
        self.sent = 0
        self.transfers = 0

    def areas(self, mm: AddressSpace) -> tuple[Any, Any]:
        """Return the device arrays of the VMAs' columns and of ``device_private``, as new as the host's."""
        wanted = mm.vmas.columns(), mm.device_private
        with self._syncing:
            if self._areas is None or self._sent_areas is None or any(map(is_not, wanted, self._sent_areas)):
                self._sent_areas = wanted
                self._areas = to_device(wanted[0]), to_device(wanted[1])
            return self._areas

    def sync(self, stream: Any = 0) -> tuple[Any, Any, Any]:
        """Return the device arrays ``upper``, ``child`` and ``leaf``, as new as the host's, in ``stream``."""
        tables, log = self._tables, self._log
        with self._syncing:
            if log.upper:
                self._send(self.upper, tables.upper, log.upper, stream)
                self._send(self.child, tables.child, log.upper, stream)
            if log.leaf or self.leaf.array is None:
                self._send(self.leaf, tables.leaf, log.leaf, stream)
            log.clear()
            return self.upper.array, self.child.array, self.leaf.array

    def _send(self, pool: _DevicePool, host: np.ndarray, changed: set[int], stream: Any) -> None:
        self.sent += len(changed)
        self.transfers += 1
        pool.update(host, changed, stream)


class _DevicePool:
    """One growing array of tables in device memory."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self.dtype = dtype
        self.array: Any = None

    def update(self, host: np.ndarray, changed: set[int], stream: Any) -> None:
        """Send the changed rows in one transfer, or everything where that is no more."""
        if self.array is None or len(host) > len(self.array):
            grown = cuda.device_array((max(1, len(host) + len(host) // 4), 512), dtype=self.dtype)
            old = self.array
            self.array = grown
            if old is not None and len(changed) < len(host) // 2:
                grown[: len(old)].copy_to_device(old, stream=stream)
            else:
                changed = set(range(len(host)))
        if not changed:
            return
        if len(changed) == len(host):
            self.array[: len(host)].copy_to_device(host, stream=stream)
            return
        rows = np.fromiter(sorted(changed), dtype=np.uint64, count=len(changed))
        sent = cuda.to_device(rows, stream=stream), cuda.to_device(host[rows], stream=stream)
        scatter_kernel[len(rows), THREADS, stream](*sent, self.array)


def to_device(table: np.ndarray) -> Any:
    """Return a device copy; of an empty table one whose shape is kept but that can be allocated."""
    if table.size:
        return cuda.to_device(table)
    return cuda.device_array((max(table.shape[0], 1), max(table.shape[1], 1)), dtype=table.dtype)[
        : table.shape[0], : table.shape[1]
    ]
