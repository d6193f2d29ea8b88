"""PTX text to instructions, cut into the basic blocks that the machine runs one at a time.

What is read is what compilers make of integer kernels: one entry, no functions.  Anything else is a
:class:`PtxError`.  Source: PTX ISA 9.0, chapters 4 (syntax) and 5 (state spaces and types).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

#: Bits of a register by the type of its declaration.
_REGISTER_BITS = {"pred": 1, "b16": 16, "b32": 32, "b64": 64, "u16": 16, "u32": 32, "u64": 64}
_REGISTER_BITS |= {"s16": 16, "s32": 32, "s64": 64}
#: A parameter is one word of the launch, cut to its type when it is loaded.
_PARAMETERS = {f".{kind}{bits}" for kind in "bus" for bits in (8, 16, 32, 64)}

#: Where a block ends: behind jumps, exits and barriers.
_ENDS = ("bra", "ret", "exit", "bar", "barrier")
#: What several lanes of a warp do together stands in a block of its own.
_TOGETHER = ("shfl.sync", "vote.sync", "bar.warp.sync")

_LABEL = re.compile(r"([$\w]+):")
_INSTRUCTION = re.compile(r"(?:@(!?%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.[bus](\d+)\s+([$\w]+)(?:\[(\d+)\])?\s*;")


class PtxError(Exception):
    """PTX that the machine does not know; it never guesses."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``@guard opcode.modifiers operands``, and its line in the text, from 1 on."""

    line: int
    guard: str
    name: str
    operands: tuple[str, ...]

    @property
    def opcode(self) -> str:
        """Return the name up to the first dot."""
        return self.name.split(".")[0]

    @property
    def together(self) -> bool:
        """True for what the lanes of a warp do together."""
        return self.name.startswith(_TOGETHER)

    @property
    def ends_block(self) -> bool:
        """True if the next instruction begins a block."""
        return self.opcode in _ENDS or self.together

    @property
    def counted(self) -> bool:
        """False for what costs nothing: parameters are constants, and cvta changes no address."""
        return not self.name.startswith(("ld.param", "cvta"))

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"line {self.line}: {guard}{self.name} {', '.join(self.operands)}".rstrip()


@dataclass
class Entry:
    """One kernel: parameters by name, registers by prefix, shared arrays, blocks, labels."""

    name: str
    parameters: dict[str, int] = field(default_factory=dict)
    register_bits: dict[str, int] = field(default_factory=dict)
    #: Name -> offset of an array in shared memory.
    shared: dict[str, int] = field(default_factory=dict)
    shared_size: int = 0
    blocks: list[list[Instruction]] = field(default_factory=list)
    #: Name -> the block that begins there; one past the last is the end of the kernel.
    labels: dict[str, int] = field(default_factory=dict)

    def bits_of(self, register: str) -> int:
        """Return the bits of a declared register; PtxError for any other."""
        bits = self.register_bits.get(register) or self.register_bits.get(register.rstrip("0123456789"))
        if bits is None:
            raise PtxError(f"a register must be declared as an integer or predicate (got {register})")
        return bits


def parse(ptx: str) -> Entry:
    """Return the one entry of ``ptx``; PtxError if there is another number of them, or a function."""
    text = re.sub(r"//[^\n]*|\0", "", ptx)
    if re.search(r"^\s*(\.visible\s+|\.extern\s+|\.weak\s+)*\.func\b", text, re.MULTILINE):
        raise PtxError("functions are unknown: everything must be inlined")
    heads = list(re.finditer(r"\.entry\s+([$\w]+)\s*\(([^)]*)\)", text))
    if len(heads) != 1:
        raise PtxError(f"there must be one entry (got {len(heads)})")
    (head,) = heads
    entry = Entry(head[1], _parameters(head[2]))
    for match in _SHARED.finditer(text):
        _add_shared(entry, *match.groups())
    if len(re.findall(r"^\s*(?:\.\w+\s+)*\.shared\b", text, re.MULTILINE)) != len(entry.shared):
        raise PtxError("an array in shared memory must have an alignment and a size")
    start = text.index("{", head.end()) + 1
    _read_body(entry, text[start : text.rindex("}")], text.count("\n", 0, start) + 1)
    return entry


def _parameters(text: str) -> dict[str, int]:
    names: dict[str, int] = {}
    for declared in filter(None, map(str.strip, text.split(","))):
        words = declared.split()
        if len(words) != 3 or words[0] != ".param" or words[1] not in _PARAMETERS:
            raise PtxError(f"a parameter must be an integer (got {declared})")
        names[words[2]] = len(names)
    return names


def _add_shared(entry: Entry, align: str, bits: str, name: str, count: str | None) -> None:
    offset = -(-entry.shared_size // int(align)) * int(align)
    entry.shared[name] = offset
    entry.shared_size = offset + int(bits) // 8 * int(count or 1)


def _read_body(entry: Entry, body: str, line: int) -> None:
    block: list[Instruction] = []
    for number, statement in _statements(body, line):
        label = _LABEL.fullmatch(statement)
        if label:
            _close(entry, block)
            entry.labels[label[1]] = len(entry.blocks)
        elif statement.startswith("."):
            _declare(entry, statement, number)
        else:
            match = _INSTRUCTION.fullmatch(statement)
            if not match:
                raise PtxError(f"line {number}: {statement}")
            operands = tuple(one.strip() for one in _OPERAND.findall(match[3]))
            instruction = Instruction(number, match[1] or "", match[2], operands)
            if instruction.together:
                _close(entry, block)
            block.append(instruction)
            if instruction.ends_block:
                _close(entry, block)
    _close(entry, block)


def _close(entry: Entry, block: list[Instruction]) -> None:
    if block:
        entry.blocks.append(list(block))
        block.clear()


def _statements(body: str, line: int) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each label, declaration and instruction."""
    for part in re.split(r"(;|(?<=:)(?=\s))", body):
        text = part.strip()
        if text and text != ";":
            yield line + part[: len(part) - len(part.lstrip())].count("\n"), text
        line += part.count("\n")


def _declare(entry: Entry, statement: str, line: int) -> None:
    directive, *words = statement.split(None, 2)
    if directive == ".reg":
        bits = _REGISTER_BITS.get(words[0].removeprefix("."))
        for name in words[1].split(","):
            if bits is not None:  # a register of another type is an error where it is used
                entry.register_bits[re.sub(r"<\d+>$", "", name.strip())] = bits
    elif directive not in (".pragma", ".loc", ".shared"):
        raise PtxError(f"line {line}: {statement}")
