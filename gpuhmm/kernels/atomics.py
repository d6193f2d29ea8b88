"""Loads and stores by which threads of one parallel loop see how far the others are."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_WORD_BYTES = 8


@intrinsic
def load_acquire(typingctx: Any, words: Any, at: Any) -> Any:
    """Return ``words[at]`` of uint64[n]: what its writer did before it stored that is seen afterwards."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, args[0])
        return builder.load_atomic(builder.gep(array.data, [args[1]]), "acquire", _WORD_BYTES)

    return types.uint64(words, types.uint64), codegen


@intrinsic
def store_release(typingctx: Any, words: Any, at: Any, value: Any) -> Any:
    """Store ``words[at]`` of uint64[n], after everything that this thread did so far."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = make_array(signature.args[0])(context, builder, args[0])
        builder.store_atomic(args[2], builder.gep(array.data, [args[1]]), "release", _WORD_BYTES)
        return context.get_dummy_value()

    return types.void(words, types.uint64, types.uint64), codegen
