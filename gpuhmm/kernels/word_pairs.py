"""Two words in one access: 16-byte loads and stores of global memory, which numba does not form itself."""

from __future__ import annotations

from typing import Any

from numba.core import config

if config.ENABLE_CUDASIM:

    def load_pair(words, at):
        """Return ``words[at]`` and the word after it; their address is a multiple of 16."""
        return words[at], words[at + type(at)(1)]

    def store_pair(words, at, first, second):
        """Store ``words[at]`` and the word after it; their address is a multiple of 16."""
        words[at] = first
        words[at + type(at)(1)] = second

else:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic
    from numba.cuda.np.arrayobj import make_array

    _PAIR = ir.VectorType(ir.IntType(64), 2)
    _FIRST = ir.Constant(ir.IntType(32), 0)
    _SECOND = ir.Constant(ir.IntType(32), 1)

    def _place(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
        data = make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(data, [at]), _PAIR.as_pointer())

    @intrinsic
    def load_pair(typingctx: Any, words: Any, at: Any) -> Any:
        """Return ``words[at]`` and the word after it; their address is a multiple of 16."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pair = builder.load(_place(context, builder, signature.args[0], *args), align=16)
            both = builder.extract_element(pair, _FIRST), builder.extract_element(pair, _SECOND)
            return context.make_tuple(builder, signature.return_type, both)

        return types.UniTuple(types.uint64, 2)(words, types.uint64), codegen

    @intrinsic
    def store_pair(typingctx: Any, words: Any, at: Any, first: Any, second: Any) -> Any:
        """Store ``words[at]`` and the word after it; their address is a multiple of 16."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pair = builder.insert_element(ir.Constant(_PAIR, ir.Undefined), args[2], _FIRST)
            pair = builder.insert_element(pair, args[3], _SECOND)
            builder.store(pair, _place(context, builder, signature.args[0], args[0], args[1]), align=16)
            return context.get_dummy_value()

        return types.void(words, types.uint64, types.uint64, types.uint64), codegen
