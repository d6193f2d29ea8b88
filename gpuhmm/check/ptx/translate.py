"""PTX to C: a kernel becomes a function that runs one basic block of one warp (``simt.h`` is beside it).

A register is an array with a place for each lane; one that lives only between two memory instructions
is a variable of the loop over lanes.  A memory instruction is done by all lanes before the next begins.
Source: PTX ISA 9.0, chapter 9 (instruction set).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gpuhmm.check.ptx.expressions import expression
from gpuhmm.check.ptx.operands import Operands, c_type
from gpuhmm.check.ptx.parse import Entry, Instruction, PtxError, parse

_BARRIERS = {"bar.sync", "barrier.sync", "barrier.sync.aligned", "bar.cta.sync", "barrier.cta.sync"}
_FENCES = ("membar", "fence")
_ATOMIC = {
    "add": "old + by",
    "and": "old & by",
    "or": "old | by",
    "xor": "old ^ by",
    "min": "old < by ? old : by",
    "max": "old > by ? old : by",
    "exch": "by",
    "inc": "old >= by ? 0 : old + 1",
    "dec": "old == 0 || old > by ? by : old - 1",
    "cas": "old == by ? with : old",
}
#: Types of an atomic operation.  Source: PTX ISA 9.0, 9.7.13.5 (atom).
_ATOMIC_TYPES = {
    **dict.fromkeys(("and", "or", "xor", "exch"), ("b32", "b64")),
    "cas": ("b16", "b32", "b64"),
    **dict.fromkeys(("min", "max"), ("u32", "s32", "u64", "s64")),
    "add": ("u32", "s32", "u64"),
    **dict.fromkeys(("inc", "dec"), ("u32",)),
}
#: Qualifiers of memory instructions that say how caches and other threads see them: all lanes of this
#: machine see one memory at once.
_ORDERS = {"weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "cta", "gpu", "sys", "nc"}
_ORDERS |= {"ca", "cg", "cs", "lu", "cv", "wb", "wt"}


@dataclass(frozen=True)
class _Access:
    """An access to global memory: its bytes and LOAD, STORE or ATOMIC."""

    size: int
    how: str


def translate(ptx: str) -> tuple[Entry, str]:
    """Return the entry of ``ptx`` and the C source of its kernel; PtxError for what is unknown."""
    entry = parse(ptx)
    return entry, _Translator(entry).source()


@contextmanager
def _named(instruction: Instruction) -> Iterator[None]:
    """Turn what goes wrong into a PtxError that names the instruction."""
    try:
        yield
    except PtxError as error:
        raise PtxError(f"{error} ({instruction})") from None
    except (KeyError, IndexError, ValueError):  # no table has it, or it has another number of parts
        raise PtxError(f"unknown instruction ({instruction})") from None


def _segments(block: list[Instruction]) -> list[list[Instruction]]:
    """Cut a block behind each memory instruction."""
    segments: list[list[Instruction]] = [[]]
    for instruction in block:
        segments[-1].append(instruction)
        if instruction.opcode in ("ld", "st", "atom", "red") and not instruction.name.startswith("ld.param"):
            segments.append([])
    return [segment for segment in segments if segment]


class _Translator:
    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.blocks = [_segments(block) for block in entry.blocks]
        self.of = Operands(entry, self.blocks)

    def source(self) -> str:
        cases = "\n".join(self._case(number, block) for number, block in enumerate(self.blocks))
        return f"""#include "simt.h"
typedef struct {{ Warp w; {self.of.declarations()} }} Registers;
static const uint64_t warp_size = sizeof(Registers), shared_size = {self.entry.shared_size};
static void step(Warp *w) {{
    Registers *R = (Registers *)w;
    const uint64_t *params = w->L->params;
    uint8_t lane[LANES];
    uint64_t A[LANES];
    uint32_t block;
    int n = pick(w, &block, lane), m;
    switch (block) {{
{cases}
    default: for (int i = 0; i < n; i++) leave(w, lane[i]);  /* behind the last instruction */
    }}
}}
"""

    def _case(self, number: int, segments: list[list[Instruction]]) -> str:
        block = self.entry.blocks[number]
        lines = [f"    case {number}: {{ count(w, {sum(one.counted for one in block)}, n);"]
        if block[0].together:
            return "\n".join([*lines, self._together(block[0], number), "    break; }"])
        for segment in segments:
            statements: list[str] = []
            access = None
            for instruction in segment:
                with _named(instruction):
                    text, access = self._statement(instruction, number)
                if instruction.guard and not instruction.ends_block:
                    text = f"if ({self.of.predicate(instruction.guard)}) {{ {text} }}"
                statements.append(text)
            if segment is segments[-1] and not block[-1].ends_block:
                statements.append(f"w->at[l] = {number + 1};")
            lines += ["    m = 0;"] if access else []
            lines += self._over_lanes(statements)
            lines += [f"    request(w, A, m, {access.size}, {access.how});"] if access else []
        return "\n".join([*lines, "    break; }"])

    def _over_lanes(self, statements: list[str]) -> list[str]:
        inside = [f"        {statement}" for statement in statements]
        locals_ = self.of.leave()
        return [f"    for (int i = 0; i < n; i++) {{ int l = lane[i]; {locals_}", *inside, "    }"]

    def _statement(self, instruction: Instruction, number: int) -> tuple[str, _Access | None]:
        """Return the C of one instruction of block ``number``, and the access to global memory in it."""
        if instruction.ends_block:
            return self._end(instruction, number), None
        if instruction.opcode in ("ld", "st"):
            return self._load_or_store(instruction)
        if instruction.opcode in ("atom", "red"):
            return self._atomic(instruction)
        if instruction.opcode in _FENCES:
            return ";", None
        if instruction.opcode == "mov" and any("{" in operand for operand in instruction.operands):
            return self._pack(instruction), None
        return expression(instruction, self.of), None

    # the ends of blocks

    def _end(self, instruction: Instruction, number: int) -> str:
        after = f"w->at[l] = {number + 1};"
        if instruction.opcode == "bra":
            done = f"w->at[l] = {self._target(instruction)};"
        elif instruction.name in ("ret", "ret.uni", "exit"):
            done = "leave(w, l);"
        elif instruction.name in _BARRIERS and instruction.operands == ("0",):
            done = f"{after} arrive(w, l);"
        else:
            raise PtxError("unknown instruction")
        if instruction.guard:
            return f"if ({self.of.predicate(instruction.guard)}) {{ {done} }} else {after}"
        return done

    def _target(self, instruction: Instruction) -> int:
        if instruction.name not in ("bra", "bra.uni") or len(instruction.operands) != 1:
            raise PtxError("unknown instruction")
        return self.entry.labels[instruction.operands[0]]

    # memory

    def _place(self, operand: str) -> str:
        """Return the address of ``[base+offset]`` as a C expression."""
        match = re.fullmatch(r"\[\s*([%$\w.]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if not match:
            raise PtxError(f"unknown address {operand}")
        offset = int(match[2] or 0) & (1 << 64) - 1
        return f"{self.of.address(match[1])} + {offset}ull"

    def _qualifiers(self, instruction: Instruction) -> tuple[str, list[str], str]:
        """Return state space, what is left between it and the type, and the type."""
        parts = [part for part in instruction.name.split(".")[1:] if part not in _ORDERS]
        space, *rest = parts[:-1]
        if space.removesuffix("::cta") not in ("global", "shared", "param"):
            raise PtxError(f"unknown state space {space}")
        return space.removesuffix("::cta"), rest, parts[-1]

    def _load_or_store(self, instruction: Instruction) -> tuple[str, _Access | None]:
        space, rest, type_ = self._qualifiers(instruction)
        loads = instruction.opcode == "ld"
        place, values = instruction.operands if not loads else instruction.operands[::-1]
        names = [name.strip() for name in values.strip("{}").split(",")]
        if rest != ([f"v{len(names)}"] if values.startswith("{") else []) or len(names) not in (1, 2, 4):
            raise PtxError("unknown instruction")
        if space == "param":
            match = re.fullmatch(r"\[(\w+)\]", place)
            if not match or not loads or len(names) != 1:
                raise PtxError("unknown instruction")
            word = f"({c_type(type_)})params[{self.entry.parameters[match[1]]}]"
            return self.of.extend(names[0], word, type_), None
        element = int(type_[1:]) // 8
        size = element * len(names)
        if size > 16:
            raise PtxError("unknown instruction")
        how = "LOAD" if loads else "STORE"
        if loads:
            moves = [
                self.of.extend(name, f"*({c_type(type_)} *)(a + {i * element})", type_)
                for i, name in enumerate(names)
            ]
            checks = [
                f"loaded(w, s, a + {i * element}, {element}, {instruction.line}, l);"
                for i in range(len(names))
            ]
            wrong = " ".join(self.of.extend(name, f"({c_type(type_)})POISON", type_) for name in names)
        else:
            moves = [
                f"{{ {c_type(type_)} v = {self.of.narrow(name, type_)}; "
                f"stored(w, s, a + {i * element}, &v, {element}, {instruction.line}, l); }}"
                for i, name in enumerate(names)
            ]
            checks, wrong = [], ""
        done = " ".join([*checks, *moves])
        text = self._checked(instruction, place, space, size, how, done, wrong)
        return text, _Access(size, how) if space == "global" else None

    def _checked(
        self, i: Instruction, place: str, space: str, size: int, how: str, done: str, wrong: str
    ) -> str:
        """Return a statement that does ``done`` at address a of span s if that is allowed, else ``wrong``."""
        keep = "A[m++] = a; " if space == "global" else ""
        base = "shared_base(w) + " if space == "shared" else ""
        return (
            f"{{ static uint64_t hint; uint64_t a = {base}{self._place(place)}; {keep}"
            f"Span *s = {space}_span(w, &hint, a, {size}, {i.line}, l); "
            f"if (s) {{ {done} }} else {{ {wrong} }} }}"
        )

    def _atomic(self, instruction: Instruction) -> tuple[str, _Access | None]:
        space, rest, type_ = self._qualifiers(instruction)
        (operation,) = rest
        if type_ not in _ATOMIC_TYPES[operation] or space == "param":
            raise PtxError("unknown instruction")
        returns = instruction.opcode == "atom"
        operands = instruction.operands if returns else ("", *instruction.operands)
        if len(operands) != 3 + (operation == "cas") or (not returns and operation in ("cas", "exch")):
            raise PtxError("unknown instruction")
        ctype, size = c_type(type_), int(type_[1:]) // 8
        values = f"{ctype} old, by = {self.of.value(operands[2], type_)};"
        if operation == "cas":
            values += f" {ctype} with = {self.of.value(operands[3], type_)};"
        keep = self.of.assign(operands[0], "old", type_) if returns else ""
        lost = self.of.assign(operands[0], f"({ctype})POISON", type_) if returns else ""
        done = (
            f"{values} atomic(w, s, a, {size}, {instruction.line}, l); old = *({ctype} *)a; "
            f"*({ctype} *)a = {_ATOMIC[operation]}; {keep}"
        )
        text = self._checked(instruction, operands[1], space, size, "ATOMIC", done, lost)
        return text, _Access(size, "ATOMIC") if space == "global" else None

    def _pack(self, instruction: Instruction) -> str:
        """``mov.b64 {lo, hi}, x`` and ``mov.b64 x, {lo, hi}``."""
        type_ = instruction.name.removeprefix("mov.")
        bits = int(type_[1:])
        target, source = instruction.operands
        names = [
            name.strip()
            for name in (target + source)[(target + source).index("{") + 1 :].split("}")[0].split(",")
        ]
        part = f"u{bits // 2}"
        if type_ not in ("b32", "b64") or len(names) != 2:
            raise PtxError("unknown instruction")
        if target.startswith("{"):
            value = self.of.value(source, f"u{bits}")
            halves = f"{c_type(f'u{bits}')} both = {value};"
            low = self.of.assign(names[0], f"({c_type(part)})both", part)
            high = self.of.assign(names[1], f"({c_type(part)})(both >> {bits // 2})", part)
            return f"{{ {halves} {low} {high} }}"
        low, high = (f"(uint64_t){self.of.value(name, part)}" for name in names)
        return self.of.assign(target, f"{low} | {high} << {bits // 2}", f"u{bits}")

    # what the lanes of a warp do together

    def _together(self, instruction: Instruction, number: int) -> str:
        with _named(instruction):
            if instruction.guard:
                raise PtxError("a guard is unknown here")
            mask, inputs, outputs = self._together_parts(instruction)
        gather = " ".join(self._over_lanes([f"gather(w, l, {mask});"])).strip()
        return f"""    {gather}
    for (uint32_t group; (group = gathered(w, {number}));) {{
        uint32_t in[LANES] = {{0}}, all = 0;
        for (int l = 0; l < LANES; l++) if (group >> l & 1) {{ {inputs} }}
        for (int l = 0; l < LANES; l++) if (group >> l & 1) {{ {outputs} w->at[l] = {number + 1}; }}
        (void)in, (void)all;
    }}"""

    def _together_parts(self, instruction: Instruction) -> tuple[str, str, str]:
        """Return the member mask, what is read of every member first, and what each member gets."""
        operands = instruction.operands
        _, _, *mode = instruction.name.split(".")
        if instruction.name == "bar.warp.sync":
            (mask,) = operands
            return self.of.value(mask, "u32"), "", "w->syncs += l == __builtin_ctz(group);"
        if instruction.opcode == "vote":
            target, source, mask = operands
            inputs = f"in[l] = {self.of.predicate(source)}; all |= in[l] << l;"
            result = {
                "any.pred": "all != 0",
                "all.pred": "all == group",
                "uni.pred": "all == group || all == 0",
                "ballot.b32": "all",
            }[".".join(mode)]
            type_ = "u32" if mode[0] == "ballot" else "pred"
            return self.of.value(mask, "u32"), inputs, self.of.assign(target, result, type_)
        target, source, by, clamp, mask = operands
        kind = {"up": "SHFL_UP", "down": "SHFL_DOWN", "bfly": "SHFL_BFLY", "idx": "SHFL_IDX"}
        (how, type_) = mode
        if type_ != "b32":
            raise PtxError("unknown instruction")
        to, _, valid = target.partition("|")
        values = f"{self.of.value(by, 'u32')}, {self.of.value(clamp, 'u32')}"
        picked = (
            f"int ok; int j = shuffled({kind[how]}, l, {values}, &ok);"
            f" if (!(group >> j & 1)) found(w, TOGETHER, {instruction.line}, j, l, 0);"
        )
        done = f"{picked} {self.of.assign(to, 'in[j]', 'u32')}"
        if valid:
            done += self.of.assign(valid, "ok", "pred")
        return self.of.value(mask, "u32"), f"in[l] = {self.of.value(source, 'u32')};", done
