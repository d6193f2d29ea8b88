"""What arguments must be: checks that several public functions share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuhmm.errors import ArrayTypeError
from gpuhmm.mm import x86


def check_pfn(name: str, pfn: int) -> None:
    """ValueError unless ``pfn`` is one of a 52-bit physical address."""
    if not 0 <= pfn < x86.MAX_PFN:
        raise ValueError(f"{name} must be a PFN below 2^40, that is 52-bit physical (got {pfn:#x})")


def check_array(
    name: str, array: object, shape: tuple[int | None, ...], dtype: npt.DTypeLike = np.uint64
) -> None:
    """ArrayTypeError unless ``array`` is of ``dtype``; ValueError unless of ``shape`` and in C order.

    None in ``shape`` stands for any length.
    """
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ArrayTypeError(f"{name} must be a numpy array of {np.dtype(dtype)} (got {got})")
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name} must have the shape {shape} (got {array.shape})")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous (got strides {array.strides})")
