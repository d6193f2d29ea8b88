"""Translation of any number of virtual addresses, kernel half included."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.errors import ArrayTypeError
from gpuhmm.hmm.backends import BackendInfo, backend_module, resolve_backend
from gpuhmm.mm.arguments import check_array
from gpuhmm.mm.tables import Words
from gpuhmm.translation.source import Tables, tables_of
from gpuhmm.translation.words import LEVEL_MASK, LEVEL_SHIFT, PA_MASK, REASON_SHIFT, Reason

#: Where each back end has a module with ``translate`` and ``translate_range``.
PACKAGE = "gpuhmm.translation"


@dataclass(frozen=True)
class Translation:
    """What addresses translate to.

    ``words`` is uint64[n], as :mod:`gpuhmm.translation.words` says; a device array if it was given
    one.  The properties are NumPy arrays and copy it to the host.
    """

    words: Any
    backend: BackendInfo

    def __len__(self) -> int:
        return len(self.words)

    def _host(self) -> Words:
        words: Words = self.words if isinstance(self.words, np.ndarray) else self.words.copy_to_host()
        return words

    @property
    def physical(self) -> Words:
        """uint64[n]: physical addresses in bytes; 0 where there is none, see ``mapped``."""
        return self._host() & PA_MASK

    @property
    def reasons(self) -> npt.NDArray[np.uint8]:
        """uint8[n]: a :class:`Reason` for each address."""
        return (self._host() >> REASON_SHIFT).astype(np.uint8)

    @property
    def levels(self) -> npt.NDArray[np.uint8]:
        """uint8[n]: the level whose entry decided, 1 (4 KiB) to 5; 0 for addresses that are not canonical."""
        return ((self._host() >> LEVEL_SHIFT) & LEVEL_MASK).astype(np.uint8)

    @property
    def mapped(self) -> npt.NDArray[np.bool_]:
        """bool[n]: there is a physical address (MAPPED or PROTNONE)."""
        return self.reasons <= Reason.PROTNONE

    def counts(self) -> dict[str, int]:
        """Return how many addresses there are of each reason, by its name."""
        found = np.bincount(self.reasons, minlength=len(Reason))
        return {reason.name: int(found[reason]) for reason in Reason}


def translate(source: Any, vas: Any, *, backend: str = "auto", out: Any = None) -> Translation:
    """Return what each of ``vas`` translates to, as hardware and Linux read the page tables.

    ``source`` is an :class:`gpuhmm.AddressSpace`, a snapshot or the tables of
    :func:`gpuhmm.dump.load_tables`; ``vas`` uint64[n], canonical addresses in bytes of either half, in any
    order.  ``out`` takes the words; with the ``cuda`` back end both may be device arrays.  TypeError and
    ValueError for arrays of the wrong kind.
    """
    tables = tables_of(source)
    info = resolve_backend(backend)
    if not _on_device(vas):
        check_array("vas", vas, (None,))
    out = _output(out, len(vas), vas, info)
    backend_module(info, PACKAGE).translate(tables, vas, out)
    return Translation(out, info)


def translate_range(
    source: Any, start: int, npages: int, *, backend: str = "auto", out: Any = None
) -> Translation:
    """Return what ``npages`` consecutive pages from ``start`` on translate to.

    The same as :func:`translate` of their first bytes, several times faster.  ValueError for a start
    that is no multiple of 4096 and for pages that are not canonical.
    """
    tables = tables_of(source)
    info = resolve_backend(backend)
    _check_range(tables, start, npages)
    out = _output(out, npages, None, info)
    if npages:
        backend_module(info, PACKAGE).translate_range(tables, start, out)
    return Translation(out, info)


def _on_device(array: Any) -> bool:
    return not isinstance(array, np.ndarray) and hasattr(array, "__cuda_array_interface__")


def _output(out: Any, count: int, vas: Any, info: BackendInfo) -> Any:
    """Return the array for the words; one on the device where the addresses are there."""
    for array in (vas, out):
        if array is not None and _on_device(array):
            if info.name != "cuda":
                raise ArrayTypeError(
                    f"device arrays need the cuda back end (got one with the {info.name} back end)"
                )
            if str(array.dtype) != "uint64" or array.ndim != 1:
                raise ArrayTypeError(
                    f"device arrays must be one-dimensional of uint64 (got {array.dtype}, {array.ndim} axes)"
                )
    if out is None:
        if vas is not None and _on_device(vas):
            cuda: Any = importlib.import_module("numba.cuda")
            return cuda.device_array(count, dtype=np.uint64)
        return np.empty(count, dtype=np.uint64)
    if not _on_device(out):
        check_array("out", out, (None,))
    if len(out) != count:
        raise ValueError(f"out must have one word for each address (got {len(out)} for {count})")
    return out


def _check_range(tables: Tables, start: int, npages: int) -> None:
    if npages < 0 or start % 4096:
        raise ValueError(
            f"a range must start at a multiple of 4096 and have no negative size (got {start:#x}, {npages})"
        )
    half = 1 << (11 + 9 * tables.levels)
    end = start + (npages << 12)
    if not (0 <= start and end <= half) and not ((1 << 64) - half <= start and end <= 1 << 64):
        raise ValueError(
            f"a range must lie in one half of the canonical addresses of {tables.levels} levels "
            f"(got {start:#x} to {end:#x})"
        )
