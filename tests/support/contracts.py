"""The numba types that the signatures of shared functions and kernels are written in."""

from __future__ import annotations

from numba.core import types

from gpuhmm.hmm.walk.arrays import Arrays
from gpuhmm.hmm.walk.constants import Walk
from gpuhmm.hmm.walk.extent import Extent
from gpuhmm.translation.words import Slot

_U64 = types.uint64
_ARRAY_1 = _U64[::1]
_ARRAY_2 = _U64[:, ::1]
_CHILD = types.int32[:, ::1]

NAMES = {
    "uint64": _U64,
    "boolean": types.boolean,
    "void": types.void,
    "Array1": _ARRAY_1,
    "Array2": _ARRAY_2,
    "Bytes1": types.uint8[::1],
    "Halves1": types.uint16[::1],
    "Numbers1": types.uint32[::1],
    "ChildArray": _CHILD,
    "UniTuple2": types.UniTuple(_U64, 2),
    "UniTuple5": types.UniTuple(_U64, 5),
    "Slot": types.NamedUniTuple(_U64, len(Slot._fields), Slot),
    "Walk": types.NamedUniTuple(_U64, len(Walk._fields), Walk),
    "Extent": types.NamedUniTuple(_U64, len(Extent._fields), Extent),
    "Arrays": types.NamedTuple((_ARRAY_2, _ARRAY_2, _ARRAY_2, _CHILD, _ARRAY_2, _ARRAY_1), Arrays),
}


def arguments(listed: str) -> tuple[types.Type, ...]:
    """Return the types of ``"uint64, Array1"``."""
    return tuple(NAMES[name.strip()] for name in listed.split(","))


def signature(contract: str) -> tuple[types.Type, tuple[types.Type, ...]]:
    """Return result and argument types of ``"uint64(uint64, Array1)"``."""
    result, listed = contract.removesuffix(")").split("(")
    return NAMES[result], arguments(listed)
