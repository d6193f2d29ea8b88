"""Results on the GPU, for whoever goes on there."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm.backends import resolve_backend


def device_columns(table: npt.NDArray[np.void]) -> dict[str, Any]:
    """Return each column of a structured array as an array in device memory, by name.

    They have ``__cuda_array_interface__``, so that CuPy, PyTorch and numba take them as they are.
    BackendError where there is no device.
    """
    resolve_backend("cuda")
    cuda: Any = importlib.import_module("numba.cuda")
    return {name: cuda.to_device(np.ascontiguousarray(table[name])) for name in table.dtype.names or ()}
