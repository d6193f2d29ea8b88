"""Compiling for CUDA without a GPU or a driver."""

from __future__ import annotations

from types import SimpleNamespace

import numba.cuda.dispatcher
import pytest
from numba import cuda


@pytest.fixture
def compile_ptx(monkeypatch):
    """Return ``compile_ptx(function, argument types, cc, device=False) -> (ptx, result type)``."""

    def compile_for(function, args, cc, device=False):
        # The dispatcher of a callee asks for the current device, only to learn what to compile for.
        target = SimpleNamespace(compute_capability=cc)
        monkeypatch.setattr(numba.cuda.dispatcher, "get_current_device", lambda: target)
        return cuda.compile_ptx(function, args, cc=cc, device=device, abi="numba")

    return compile_for
