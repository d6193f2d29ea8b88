"""The one decorator of code that the CPU and the CUDA back end compile from the same source."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

#: Every shared function and the numba signature that its types must have on each target.
CONTRACTS: dict[Callable[..., Any], str] = {}


class Compiling:
    """For how many seconds this process has compiled so far: while at least one of its threads does."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._under_way = 0
        self._since = 0.0
        self._lock = threading.Lock()

    def count(self, events: Any) -> None:
        """Count what an event module of numba (``numba.core.event`` or its like of numba-cuda) tells of."""
        compiling = self

        class Listener(events.Listener):  # type: ignore[misc]
            def on_start(self, event: Any) -> None:
                compiling._change(1)

            def on_end(self, event: Any) -> None:
                compiling._change(-1)

        kind = next(kind for kind in events._builtin_kinds if kind.endswith(":compile"))
        events.register(kind, Listener())

    def _change(self, by: int) -> None:
        with self._lock:
            now = time.monotonic()
            if self._under_way:
                self.seconds += now - self._since
            self._under_way += by
            self._since = now


#: Back ends that compile say so here; deadlines do not count it.
COMPILING = Compiling()

_registered: set[Callable[..., Any]] = set()


def shared(signature: str) -> Callable[[F], F]:
    """Mark a function over ``uint64`` as compiled for every target.

    ``signature`` is the contract with which ``tests/kernels/test_types.py`` compares the inferred types.
    The function itself is returned: plain Python calls it as it stands, and importing it needs no
    numba.  Back ends call :func:`register` before they compile.
    """

    def mark(function: F) -> F:
        CONTRACTS[function] = signature
        return function

    return mark


def register() -> None:
    """Make every shared function that was imported so far callable from ``njit`` and ``cuda.jit`` code."""
    from numba.extending import register_jitable

    # Without NRT no function counts references to its arrays: each count is an atomic instruction, and
    # threads would share it.  Inlined, results of many fields stay in registers.
    for function in CONTRACTS:
        if function not in _registered:
            register_jitable(_nrt=False, forceinline=True)(function)
            _registered.add(function)
