"""Operands as C: registers, constants, special registers, addresses in shared memory."""

from __future__ import annotations

import re

from gpuhmm.check.ptx.parse import Entry, Instruction, PtxError

#: Special registers, all of 32 bits; grids and blocks have one dimension.  Source: PTX ISA 9.0, chapter 10.
_SPECIAL = {
    "%tid.x": "(w->first + l)",
    "%ntid.x": "w->L->block",
    "%ctaid.x": "w->B->index",
    "%nctaid.x": "w->L->grid",
    **{f"%{name}.{axis}": "0" for name in ("tid", "ctaid") for axis in "yz"},
    **{f"%{name}.{axis}": "1" for name in ("ntid", "nctaid") for axis in "yz"},
    "%laneid": "l",
    "%lanemask_eq": "(1u << l)",
    "%lanemask_lt": "((1u << l) - 1)",
    "%lanemask_le": "((2u << l) - 1)",
    "%lanemask_gt": "~((2u << l) - 1)",
    "%lanemask_ge": "~((1u << l) - 1)",
    "WARP_SZ": "32",
}
_NUMBER = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[0-7]*|[1-9]\d*)U?")
_REGISTER = re.compile(r"%[A-Za-z_$][\w$]*")
_C_OF_BITS = {1: "uint8_t", 16: "uint16_t", 32: "uint32_t", 64: "uint64_t"}


def c_type(type_: str) -> str:
    """Return the C type of a PTX type of integers: u64 -> uint64_t."""
    match = re.fullmatch(r"([bus])(8|16|32|64)", type_)
    if not match:
        raise PtxError(f"unknown type {type_}")
    return f"{'int' if match[1] == 's' else 'uint'}{match[2]}_t"


def bits_of(type_: str) -> int:
    """Return the bits of a PTX type; 1 for a predicate."""
    return 1 if type_ == "pred" else int(type_[1:])


class Operands:
    """The operands of one kernel, given as blocks cut into segments: the loops over lanes."""

    def __init__(self, entry: Entry, segments: list[list[list[Instruction]]]) -> None:
        self.entry = entry
        self._local = _local_registers(segments)
        self._kept: dict[str, int] = {}  # register -> bits, of those with a place for each lane
        self._variables: set[str] = set()  # the local ones of this segment

    def leave(self) -> str:
        """End a segment; return the declarations of the variables that live in it alone."""
        declared = " ".join(
            f"{_C_OF_BITS[self.entry.bits_of(name)]} {_variable(name)};" for name in sorted(self._variables)
        )
        self._variables = set()
        return declared

    def declarations(self) -> str:
        """Return the C fields of the registers that outlive a segment."""
        return " ".join(f"{_C_OF_BITS[bits]} {_variable(name)}[LANES];" for name, bits in self._kept.items())

    def register(self, name: str) -> str:
        """Return the C place of a register of the lane l."""
        if not _REGISTER.fullmatch(name):
            raise PtxError(f"unknown register {name}")
        bits = self.entry.bits_of(name)
        if name in self._local:
            self._variables.add(name)
            return _variable(name)
        self._kept[name] = bits
        return f"R->{_variable(name)}[l]"

    def value(self, operand: str, type_: str) -> str:
        """Return an operand of exactly that type as a C expression of it."""
        return f"(({c_type(type_)})({self._text(operand, bits_of(type_))}))"

    def narrow(self, operand: str, type_: str) -> str:
        """Return an operand that may be wider than its type (of st and cvt), cut to it."""
        return f"(({c_type(type_)})({self._text(operand, bits_of(type_), wider=True)}))"

    def address(self, operand: str) -> str:
        """Return a register of 32 or 64 bits, a number or an array in shared memory as an address."""
        return f"((uint64_t)({self._text(operand, 32, wider=True)}))"

    def predicate(self, operand: str) -> str:
        """Return a predicate, with or without ``!``, as a C condition."""
        name = operand.removeprefix("!")
        sign = "!" if operand.startswith("!") else ""
        if _NUMBER.fullmatch(name):
            return f"{sign}{int(number(name) != 0)}"
        if self.entry.bits_of(name) != 1:
            raise PtxError(f"a predicate is expected (got {operand})")
        return f"{sign}({self.register(name)} != 0)"

    def assign(self, register: str, text: str, type_: str) -> str:
        """Return the assignment of ``text`` to a register of exactly that type."""
        if self.entry.bits_of(register) != bits_of(type_):
            raise PtxError(f"{register} must have the type {type_}")
        return f"{self.register(register)} = {text};"

    def extend(self, register: str, text: str, type_: str) -> str:
        """Return the assignment to a register that may be wider: by its sign (of ld and cvt)."""
        if not bits_of(type_) <= self.entry.bits_of(register):
            raise PtxError(f"{register} must have at least the type {type_}")
        return f"{self.register(register)} = {text};"

    def _text(self, operand: str, bits: int, wider: bool = False) -> str:
        if operand in _SPECIAL:
            if bits != 32:
                raise PtxError(f"{operand} has 32 bits (got {bits})")
            return f"(uint32_t){_SPECIAL[operand]}"
        if operand.startswith("%"):
            has = self.entry.bits_of(operand)
            if has != bits and not (wider and has > bits):
                raise PtxError(f"{operand} has {has} bits (got {bits})")
            return self.register(operand)
        if operand in self.entry.shared:
            return f"{self.entry.shared[operand]}ull"
        return f"{number(operand) & (1 << 64) - 1}ull"


def number(text: str) -> int:
    """Return a constant of PTX: decimal, octal (0...), hexadecimal (0x...) or binary (0b...)."""
    match = _NUMBER.fullmatch(text)
    if not match:
        raise PtxError(f"unknown operand {text}")
    digits = match[2].lower()
    base = 16 if digits.startswith("0x") else 2 if digits.startswith("0b") else 8 if digits[0] == "0" else 10
    value = int(digits, base)
    return -value if match[1] else value


def _variable(register: str) -> str:
    return register[1:].replace("$", "_D")


def _local_registers(blocks: list[list[list[Instruction]]]) -> set[str]:
    """Return the registers that one segment writes first and no other one uses."""
    homes: dict[str, int] = {}
    local: set[str] = set()
    shared: set[str] = set()
    for at, segment in enumerate(segment for block in blocks for segment in block):
        for instruction in segment:
            targets = _targets(instruction)
            for name in [*_sources(instruction), *targets]:
                if name not in homes:
                    homes[name] = at
                    if name in targets and name not in _sources(instruction):
                        local.add(name)
                elif homes[name] != at:
                    shared.add(name)
            if instruction.guard or instruction.together:
                shared.update(targets)  # a lane that does not write keeps what was there
    return local - shared


def _registers(text: str) -> list[str]:
    return [name for name in _REGISTER.findall(text) if name not in _SPECIAL and name + ".x" not in _SPECIAL]


def _targets(instruction: Instruction) -> list[str]:
    """Return the registers that an instruction writes."""
    if instruction.opcode in ("st", "red") or instruction.name == "bar.warp.sync":
        return []
    return _registers(instruction.operands[0]) if instruction.operands else []


def _sources(instruction: Instruction) -> list[str]:
    """Return the registers that an instruction reads."""
    read = instruction.operands[1:] if _targets(instruction) else instruction.operands
    return [name for text in (instruction.guard, *read) for name in _registers(text)]
