"""Instructions that compute one register from others, as C assignments.

Each form is held against whole-number arithmetic in ``tests/check/ptx/test_instructions.py``.
Source: PTX ISA 9.0, 9.7.1 (integer arithmetic), 9.7.6 (comparison), 9.7.8 (logic and shift), 9.7.9
(data movement).
"""

from __future__ import annotations

from collections.abc import Callable

from gpuhmm.check.ptx.operands import Operands, bits_of, c_type
from gpuhmm.check.ptx.parse import Instruction, PtxError

_EQUAL = {"eq": "==", "ne": "!="}
_ORDER = {**_EQUAL, "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
#: Comparisons of bits, signed and unsigned numbers.
_COMPARE = {"b": _EQUAL, "s": _ORDER, "u": {**_ORDER, "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}}
_LOGIC = {"and": "&", "or": "|", "xor": "^"}
_COMBINE = {"and": "&&", "or": "||", "xor": "!="}
#: Types of each opcode, by kind and bits.
_INTEGERS = {f"{kind}{bits}" for kind in "us" for bits in (16, 32, 64)}
_BITS = {f"b{bits}" for bits in (16, 32, 64)}
_WIDE = {"u16", "s16", "u32", "s32"}
_LONG = {"u32", "s32", "u64", "s64"}


def expression(instruction: Instruction, of: Operands) -> str:
    """Return the C statement of an instruction; PtxError for one that is unknown."""
    opcode, *modifiers = instruction.name.split(".")
    return _FORMS[opcode](modifiers, instruction, of)


def _unsigned(type_: str) -> str:
    return f"u{type_[1:]}"


def _require(held: bool) -> None:
    if not held:
        raise PtxError("unknown instruction")


def _binary(instruction: Instruction, of: Operands, type_: str, text: str) -> str:
    """Return an assignment of ``text``, in which {a} and {b} are the two sources, cut to the type."""
    target, a, b = instruction.operands
    done = text.format(a=of.value(a, type_), b=of.value(b, type_))
    return of.assign(target, f"({c_type(type_)})({done})", type_)


def _add_sub(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    (type_,) = modifiers
    _require(type_ in _INTEGERS)
    sign = "+" if instruction.opcode == "add" else "-"
    return _binary(instruction, of, _unsigned(type_), f"{{a}} {sign} {{b}}")


def _mul_mad(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    part, type_ = modifiers
    target, a, b, *addend = instruction.operands
    _require(len(addend) == (instruction.opcode == "mad") and type_ in _INTEGERS)
    result = type_
    if part == "hi":
        product = f"mul_hi_{type_}({of.value(a, type_)}, {of.value(b, type_)})"
    else:
        _require(part == "lo" or (part == "wide" and type_ in _WIDE))
        result = type_ if part == "lo" else f"{type_[0]}{2 * bits_of(type_)}"
        # The factors are widened by their sign; the product is one of unsigned numbers, cut.
        product = " * ".join(f"(uint64_t)({c_type(result)}){of.value(factor, type_)}" for factor in (a, b))
    if addend:
        product += f" + (uint64_t){of.value(addend[0], result)}"
    return of.assign(target, f"({c_type(_unsigned(result))})({product})", result)


def _div_rem(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    (type_,) = modifiers
    _require(type_ in _INTEGERS)
    call = f"{instruction.opcode}_{type_}(w, {instruction.line}, l, {{a}}, {{b}})"
    return _binary(instruction, of, type_, call)


def _min_max(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    (type_,) = modifiers
    _require(type_ in _INTEGERS)
    sign = "<" if instruction.opcode == "min" else ">"
    return _binary(instruction, of, type_, f"{{a}} {sign} {{b}} ? {{a}} : {{b}}")


def _abs_neg(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    (type_,) = modifiers
    _require(type_ in _INTEGERS and type_[0] == "s")
    target, a = instruction.operands
    negative = f"0 - {of.value(a, _unsigned(type_))}"
    if instruction.opcode == "abs":
        negative = f"{of.value(a, type_)} < 0 ? {negative} : {of.value(a, _unsigned(type_))}"
    return of.assign(target, f"({c_type(_unsigned(type_))})({negative})", type_)


def _logic(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    (type_,) = modifiers
    if type_ == "pred":
        target, a, b = instruction.operands
        sign = _COMBINE[instruction.opcode]
        return of.assign(target, f"{of.predicate(a)} {sign} {of.predicate(b)}", type_)
    _require(type_ in _BITS)
    return _binary(instruction, of, type_, f"{{a}} {_LOGIC[instruction.opcode]} {{b}}")


def _not(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    (type_,) = modifiers
    target, a = instruction.operands
    if type_ == "pred":
        return of.assign(target, f"!{of.predicate(a)}", type_)
    _require(type_ in _BITS)
    return of.assign(target, f"({c_type(type_)})~{of.value(a, type_)}", type_)


def _shift(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    (type_,) = modifiers
    _require(type_ in (_BITS if instruction.opcode == "shl" else _BITS | _INTEGERS))
    target, a, by = instruction.operands
    kind = "signed" if type_[0] == "s" else "unsigned"
    call = f"{instruction.opcode}_{kind}({of.value(a, type_)}, {of.value(by, 'u32')}, {bits_of(type_)})"
    return of.assign(target, f"({c_type(type_)}){call}", type_)


def _funnel(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    side, how, type_ = modifiers
    _require(side in "lr" and how in ("clamp", "wrap") and type_ == "b32")
    target, low, high, by = instruction.operands
    amount = of.value(by, "u32")
    amount = f"({amount} & 31)" if how == "wrap" else f"({amount} < 32 ? {amount} : 32)"
    both = f"((uint64_t){of.value(high, 'u32')} << 32 | {of.value(low, 'u32')})"
    text = f"{both} << {amount} >> 32" if side == "l" else f"{both} >> {amount}"
    return of.assign(target, f"(uint32_t)({text})", type_)


def _lop3(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    (type_,) = modifiers
    _require(type_ == "b32")
    target, *sources, table = instruction.operands
    a, b, c = (of.value(source, type_) for source in sources)
    return of.assign(target, f"lop3({a}, {b}, {c}, {of.value(table, 'u32')})", type_)


def _counting(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    """``popc``, ``clz``, ``brev`` and ``bfind``: a number of 32 bits, or as many bits as the source."""
    opcode = instruction.opcode
    type_ = modifiers[-1]
    target, a = instruction.operands
    _require(type_ in (_LONG if opcode == "bfind" else {"b32", "b64"}))
    _require(
        len(modifiers) == 1 or (opcode == "bfind" and modifiers[0] == "shiftamt" and len(modifiers) == 2)
    )
    name = "_".join([opcode, *modifiers[:-1]])
    kind = type_ if opcode == "bfind" else f"u{bits_of(type_)}"
    return of.assign(target, f"{name}_{kind}({of.value(a, type_)})", type_ if opcode == "brev" else "u32")


def _bit_field(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    """``bfe`` takes a field out, ``bfi`` puts one in."""
    (type_,) = modifiers
    target, *sources, position, length = instruction.operands
    _require(len(sources) == 1 + (instruction.opcode == "bfi"))
    _require(type_ in (_LONG if instruction.opcode == "bfe" else {"b32", "b64"}))
    values = ", ".join(of.value(source, type_) for source in sources)
    field = f"{of.value(position, 'u32')} & 255, {of.value(length, 'u32')} & 255, {bits_of(type_)}"
    kind = "_signed" if type_[0] == "s" else ""
    return of.assign(target, f"({c_type(type_)}){instruction.opcode}{kind}({values}, {field})", type_)


def _permute(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    (type_,) = modifiers
    _require(type_ == "b32")
    target, *sources = instruction.operands
    a, b, selector = (of.value(source, type_) for source in sources)
    return of.assign(target, f"prmt({a}, {b}, {selector})", type_)


def _move(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    (type_,) = modifiers
    target, a = instruction.operands
    if type_ == "pred":
        return of.assign(target, of.predicate(a), type_)
    _require(type_ in _BITS | _INTEGERS)
    return of.assign(target, of.value(a, type_), type_)


def _address(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    """``cvta``: addresses of this machine are the same in every state space."""
    *spaces, type_ = modifiers
    _require(spaces in (["to", "global"], ["global"]) and type_ == "u64")
    target, a = instruction.operands
    return of.assign(target, of.value(a, type_), type_)


def _convert(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    to, source = modifiers
    _require("b" not in (to[0], source[0]))
    target, a = instruction.operands
    return of.extend(target, f"({c_type(to)}){of.narrow(a, source)}", to)


def _select(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    (type_,) = modifiers
    _require(type_ in _BITS | _INTEGERS)
    target, a, b, condition = instruction.operands
    return of.assign(
        target, f"{of.predicate(condition)} ? {of.value(a, type_)} : {of.value(b, type_)}", type_
    )


def _set_predicate(modifiers: list[str], instruction: Instruction, of: Operands) -> str:
    how, *combine, type_ = modifiers
    target, a, b, *more = instruction.operands
    _require(type_ in _BITS | _INTEGERS and len(combine) == len(more) <= 1)
    sign = _COMPARE[type_[0]][how]
    compared = f"({of.value(a, type_)} {sign} {of.value(b, type_)})"
    results = [compared, f"!{compared}"]
    if combine:
        results = [f"({one} {_COMBINE[combine[0]]} {of.predicate(more[0])})" for one in results]
    targets = target.split("|")
    _require(len(targets) <= 2)
    names = [f"c{i}" for i in range(len(targets))]
    first = " ".join(f"uint8_t {name} = {result};" for name, result in zip(names, results, strict=False))
    then = " ".join(of.assign(one.strip(), name, "pred") for one, name in zip(targets, names, strict=True))
    return f"{{ {first} {then} }}"


_FORMS: dict[str, Callable[[list[str], Instruction, Operands], str]] = {
    **dict.fromkeys(("add", "sub"), _add_sub),
    **dict.fromkeys(("mul", "mad"), _mul_mad),
    **dict.fromkeys(("div", "rem"), _div_rem),
    **dict.fromkeys(("min", "max"), _min_max),
    **dict.fromkeys(("abs", "neg"), _abs_neg),
    **dict.fromkeys(("and", "or", "xor"), _logic),
    "not": _not,
    **dict.fromkeys(("shl", "shr"), _shift),
    "shf": _funnel,
    "lop3": _lop3,
    **dict.fromkeys(("popc", "clz", "brev", "bfind"), _counting),
    **dict.fromkeys(("bfe", "bfi"), _bit_field),
    "prmt": _permute,
    "mov": _move,
    "cvta": _address,
    "cvt": _convert,
    "selp": _select,
    "setp": _set_predicate,
}
