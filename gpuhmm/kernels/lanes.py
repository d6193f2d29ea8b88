"""Eight words side by side: a numba type whose operators are vector instructions.

A shared function of nothing but ``& | ^ ~ + * << >>`` takes ``Lanes`` as it takes a ``uint64``, so that
its arithmetic stands once; LLVM makes of eight words whatever vectors the processor has.  Loads and
stores are here because numba's loops can neither store past the caches nor ask for entries ahead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, overload, register_model
from numba.np.arrayobj import make_array

from gpuhmm.hmm.walk.branchless import equal
from gpuhmm.mm.x86 import U64

#: Words of a line: 64 bytes, what a cache fetches and what a store past it should fill.
LINE = U64(8)

_WORD = ir.IntType(64)
_INT = ir.IntType(32)
_VECTOR = ir.VectorType(_WORD, int(LINE))
_BIT = ir.IntType(1)


class LanesType(types.Type):  # type: ignore[misc]
    """Eight uint64."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


#: The one instance.
LANES = LanesType()


@register_model(LanesType)
class _LanesModel(PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _spread(builder: Any, value: Any) -> Any:
    """Return a vector whose lanes are all ``value``."""
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, _INT(0))
    zeros = ir.Constant(ir.VectorType(_INT, int(LINE)), [0] * int(LINE))
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), zeros)


def _binary(instruction: str) -> Callable[..., Any]:
    """Return the intrinsic of one instruction over lanes, or over lanes and one word for all of them."""

    @intrinsic
    def apply(typingctx: Any, left: Any, right: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            sides = [
                arg if kind == LANES else _spread(builder, arg)
                for kind, arg in zip(signature.args, args, strict=True)
            ]
            return getattr(builder, instruction)(*sides)

        return LANES(left, right), codegen

    return apply


@intrinsic
def _invert(typingctx: Any, lanes: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.not_(args[0])

    return LANES(lanes), codegen


def _install(symbol: Any, instruction: str) -> None:
    apply = _binary(instruction)

    @overload(symbol)
    def operation(left, right):
        if LANES in (left, right) and {left, right} <= {LANES, types.uint64}:
            return lambda left, right: apply(left, right)
        return None


for _symbol, _instruction in (
    (operator.and_, "and_"),
    (operator.or_, "or_"),
    (operator.xor, "xor"),
    (operator.add, "add"),
    (operator.mul, "mul"),
    (operator.lshift, "shl"),
    (operator.rshift, "lshr"),
):
    _install(_symbol, _instruction)


@overload(operator.invert)
def _inverted(lanes):
    if lanes == LANES:
        return lambda lanes: _invert(lanes)
    return None


@intrinsic
def _equal(typingctx: Any, lanes: Any, word: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sext(builder.icmp_unsigned("==", args[0], _spread(builder, args[1])), _VECTOR)

    return LANES(LANES, types.uint64), codegen


@overload(equal)
def _equal_lanes(one, other):
    if one == LANES and other == types.uint64:
        return lambda one, other: _equal(one, other)
    return None


def _place(context: Any, builder: Any, array_type: Any, array: Any, at: Any, kind: Any) -> Any:
    """Return the address of ``array[at]`` as a pointer to ``kind``; the array is contiguous."""
    data = make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), kind.as_pointer())


def _mark_nontemporal(builder: Any, store: Any) -> None:
    store.set_metadata("nontemporal", builder.module.add_metadata([_INT(1)]))


@intrinsic
def spread(typingctx: Any, word: Any) -> Any:
    """Return lanes that are all ``word``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _spread(builder, args[0])

    return LANES(types.uint64), codegen


@intrinsic
def counted(typingctx: Any, word: Any, step: Any) -> Any:
    """Return lanes that begin with ``word`` and grow by ``step``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = ir.Constant(_VECTOR, list(range(int(LINE))))
        return builder.add(_spread(builder, args[0]), builder.mul(_spread(builder, args[1]), numbers))

    return LANES(types.uint64, types.uint64), codegen


@intrinsic
def load_line(typingctx: Any, words: Any, at: Any) -> Any:
    """Return ``words.reshape(-1)[at]`` and the seven after it, at any alignment."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_place(context, builder, signature.args[0], *args, _VECTOR), align=8)  # type: ignore[call-arg]

    return LANES(words, types.uint64), codegen


@intrinsic
def store_line(typingctx: Any, words: Any, at: Any, line: Any) -> Any:
    """Store eight words at ``words[at]``, at any alignment, into the cache."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, at, line = args
        builder.store(line, _place(context, builder, signature.args[0], array, at, _VECTOR), align=8)
        return context.get_dummy_value()

    return types.void(words, types.uint64, LANES), codegen


@intrinsic
def store_line_past_caches(typingctx: Any, words: Any, at: Any, line: Any) -> Any:
    """Store eight words at ``words[at]``, whose address is a multiple of 16, past the caches.

    By halves of 16 bytes, which every x86-64 processor has a store for; its buffers join them to lines.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, at, line = args
        half = ir.VectorType(_WORD, 2)
        place = _place(context, builder, signature.args[0], array, at, half)
        for i in range(int(LINE) // 2):
            mask = ir.Constant(ir.VectorType(_INT, 2), [2 * i, 2 * i + 1])
            part = builder.shuffle_vector(line, ir.Constant(_VECTOR, ir.Undefined), mask)
            _mark_nontemporal(builder, builder.store(part, builder.gep(place, [_INT(i)]), align=16))
        return context.get_dummy_value()

    return types.void(words, types.uint64, LANES), codegen


@intrinsic
def any_of(typingctx: Any, lanes: Any, mask: Any) -> Any:
    """Return whether a lane has any bit of ``mask``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        masked = builder.and_(args[0], _spread(builder, args[1]))
        kind = ir.FunctionType(_WORD, [_VECTOR])
        reduce = get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.or.v{LINE}i64")
        return builder.icmp_unsigned("!=", builder.call(reduce, [masked]), _WORD(0))

    return types.boolean(LANES, types.uint64), codegen


@intrinsic
def prefetch(typingctx: Any, words: Any, at: Any) -> Any:
    """Ask for the line of ``words.reshape(-1)[at]`` ahead of its load; past the end that does nothing."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        place = _place(context, builder, signature.args[0], *args, ir.IntType(8))  # type: ignore[call-arg]
        kind = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [place, _INT(0), _INT(0), _INT(1)])  # to read; used once; data
        return context.get_dummy_value()

    return types.void(words, types.uint64), codegen


@intrinsic
def address_of(typingctx: Any, words: Any, at: Any) -> Any:
    """Return the address of ``words[at]``, a uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(_place(context, builder, signature.args[0], *args, _WORD), _WORD)  # type: ignore[call-arg]

    return types.uint64(words, types.uint64), codegen


@intrinsic
def finish_stores(typingctx: Any) -> Any:
    """Let nothing that this thread does later be seen before what it stored past the caches.

    x86-64 orders such stores with no others: without SFENCE a thread that learns of the end, by the
    store that says so, could still read old words.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if builder.module.triple.startswith("x86_64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(get_or_insert_function(builder.module, kind, "llvm.x86.sse.sfence"), [])
        else:
            builder.fence("release")
        return context.get_dummy_value()

    return types.void(), codegen
