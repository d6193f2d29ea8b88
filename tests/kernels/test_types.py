"""Every shared function has exactly the types of its contract, on the CPU and for CUDA.

Plain Python proves nothing here: NumPy keeps uint64 where numba goes to int64 or float64.
"""

import importlib
import pkgutil

import pytest
from contracts import NAMES, signature
from cuda_compiler import compile_ptx  # noqa: F401
from numba import cuda, njit
from numba.core import ir, types

import gpuhmm
from gpuhmm.shared import CONTRACTS, register

# Every module that shared functions are in, and the kernels that bring their own.
for module in pkgutil.walk_packages(gpuhmm.__path__, "gpuhmm."):
    if module.name.startswith(
        (
            "gpuhmm.hmm.walk.",
            "gpuhmm.kernels.",
            "gpuhmm.translation.",
            "gpuhmm.coalesce.preprocess.",
            "gpuhmm.coalesce.drivers.uvm.",
        )
    ) or module.name in (
        "gpuhmm.mm.x86",
        "gpuhmm.hmm.words",
    ):
        importlib.import_module(module.name)
register()

FUNCTIONS = sorted(CONTRACTS, key=lambda function: (function.__module__, function.__name__))
IDS = [f"{function.__module__.removeprefix('gpuhmm.')}.{function.__name__}" for function in FUNCTIONS]


def inferred(function):
    """Compile for the CPU; return result type, types of all variables, and the types of every call."""
    _, args = signature(CONTRACTS[function])
    dispatcher = njit(function)
    dispatcher.compile(args)
    annotation = dispatcher.overloads[args].type_annotation
    return dispatcher.overloads[args].signature.return_type, annotation.typemap, annotation.calltypes


def mixed_operations(calltypes):
    """Yield what combines an unsigned with a signed operand, which numba computes as int64 or float64."""
    for expression, call in calltypes.items():
        if isinstance(expression, ir.Expr) and expression.op in ("binop", "inplace_binop"):
            operands = [types.unliteral(t) for t in call.args]
            if types.uint64 in operands and any(t in types.signed_domain for t in operands):
                yield f"{expression} {call}"


@pytest.mark.parametrize("function", FUNCTIONS, ids=IDS)
def test_cpu_types_are_those_of_the_contract(function):
    result, variables, calltypes = inferred(function)
    expected, _ = signature(CONTRACTS[function])
    assert types.unliteral(result) == (types.none if expected == types.void else expected)
    assert not [f"{name}: {t}" for name, t in variables.items() if t in types.real_domain]
    assert not list(mixed_operations(calltypes))


@pytest.mark.parametrize("function", FUNCTIONS, ids=IDS)
def test_cuda_result_type_is_that_of_the_contract(function, compile_ptx):  # noqa: F811
    expected, args = signature(CONTRACTS[function])
    ptx, result = compile_ptx(function, args, (9, 0), device=True)
    assert result == (types.none if expected == types.void else expected)
    assert ".f64" not in ptx


def test_the_check_catches_a_signed_constant():
    def wrong(entry):
        return entry & 0xFFF

    dispatcher = njit(wrong)
    dispatcher.compile((NAMES["uint64"],))
    annotation = dispatcher.overloads[(NAMES["uint64"],)].type_annotation
    assert list(mixed_operations(annotation.calltypes))


def test_cuda_is_that_of_numba_cuda():
    assert cuda.implementation == "NVIDIA"
