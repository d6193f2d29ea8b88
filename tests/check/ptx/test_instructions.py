"""Every form of every instruction, over edge values, against whole-number arithmetic.

The expected values are written from the text of the PTX ISA's chapters, with Python's unbounded integers.
"""

import itertools
import operator

import numpy as np
import pytest
from ptx_kernels import download, entry, new_machine, place, run, upload

EDGES = [
    0,
    1,
    2,
    7,
    8,
    31,
    32,
    33,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    2**31 - 1,
]
EDGES += [2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
EDGES += [0x0123456789ABCDEF, 0xFEDCBA9876543210]
PAIRS = list(itertools.product(EDGES, EDGES))
#: Third sources: a few, at random places.
THIRD = [EDGES[(7 * i + i // 31) % len(EDGES)] for i in range(len(PAIRS))]

#: Registers of sources a, b, c and of the result, by bits.
A, B, C, D = ({16: f"%rs{i}", 32: f"%r{10 + i}", 64: f"%rd{i}"} for i in (1, 2, 3, 4))
#: How a result comes to %rd4.
BACK = {1: "selp.u64 %rd4, 1, 0, %p1;", 16: "cvt.u64.u16 %rd4, %rs4;", 32: "cvt.u64.u32 %rd4, %r14;", 64: ""}
COMPARE = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le}
COMPARE |= {"gt": operator.gt, "ge": operator.ge}
UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}


def bits_of(type_):
    return int(type_[1:])


def view(value, type_):
    """Return a value as a number of that type."""
    value &= (1 << bits_of(type_)) - 1
    negative = type_[0] == "s" and value >> (bits_of(type_) - 1)
    return value - (1 << bits_of(type_)) if negative else value


def truncated(a, b):
    """Return the quotient towards zero."""
    return abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


class Forms:
    """Instructions that become one kernel, each run for every pair of edge values."""

    def __init__(self):
        self.forms = []

    def add(self, text, result_bits, expected):
        """Add an instruction with the function of a, b and c that it computes; None: not defined."""
        self.forms.append((text, result_bits, expected))

    def check(self, finds=()):
        """Run them, and compare every result."""
        machine = new_machine(races=False)
        columns = [[a for a, _ in PAIRS], [b for _, b in PAIRS], THIRD]
        arrays = [upload(machine, np.array(column, dtype=np.uint64)) for column in columns]
        arrays.append(upload(machine, np.zeros((len(PAIRS), len(self.forms)), dtype=np.uint64)))
        body = "".join(
            f"{place(8, f'%rd{10 + i}')} ld.global.u64 %rd{1 + i}, [%rd0]; "
            f"cvt.u32.u64 %r{11 + i}, %rd{1 + i}; cvt.u16.u64 %rs{1 + i}, %rd{1 + i};\n"
            for i in range(3)
        )
        body += place(8 * len(self.forms), "%rd13")
        for at, (text, bits, _) in enumerate(self.forms):
            body += f"{text} {BACK[bits]} st.global.u64 [%rd0+{8 * at}], %rd4;\n"
        found = run(machine, entry(f"{body} ret;", 4), arrays, -(-len(PAIRS) // 31), 31)
        assert found == set(finds)
        got = download(machine, arrays[3]).reshape(len(PAIRS), -1).T.tolist()
        wrong = []
        for (text, bits, expected), results in zip(self.forms, got, strict=True):
            mask = (1 << bits) - 1
            for (a, b), c, value in zip(PAIRS, THIRD, results, strict=True):
                right = expected(a, b, c)
                if right is not None and value != int(right) & mask:
                    wrong.append(f"{text} a={a:#x} b={b:#x} c={c:#x}: {value:#x}, not {int(right) & mask:#x}")
        assert not wrong, wrong[:3]


INTEGERS = [f"{kind}{bits}" for bits in (16, 32, 64) for kind in "us"]
BITS = ["b16", "b32", "b64"]


@pytest.mark.parametrize("type_", INTEGERS)
def test_arithmetic(type_):
    forms = Forms()
    n = bits_of(type_)
    two = f"{D[n]}, {A[n]}, {B[n]};"

    def of(function):
        return lambda a, b, c: function(view(a, type_), view(b, type_), view(c, type_))

    forms.add(f"add.{type_} {two}", n, of(lambda a, b, c: a + b))
    forms.add(f"sub.{type_} {two}", n, of(lambda a, b, c: a - b))
    forms.add(f"mul.lo.{type_} {two}", n, of(lambda a, b, c: a * b))
    forms.add(f"mul.hi.{type_} {two}", n, of(lambda a, b, c: a * b >> n))
    forms.add(f"mad.lo.{type_} {two[:-1]}, {C[n]};", n, of(lambda a, b, c: a * b + c))
    forms.add(f"mad.hi.{type_} {two[:-1]}, {C[n]};", n, of(lambda a, b, c: (a * b >> n) + c))
    forms.add(f"min.{type_} {two}", n, of(lambda a, b, c: min(a, b)))
    forms.add(f"max.{type_} {two}", n, of(lambda a, b, c: max(a, b)))
    forms.add(f"div.{type_} {two}", n, of(lambda a, b, c: truncated(a, b) if b else None))
    forms.add(f"rem.{type_} {two}", n, of(lambda a, b, c: a - b * truncated(a, b) if b else None))
    if n < 64:
        wide = D[2 * n]
        forms.add(f"mul.wide.{type_} {wide}, {A[n]}, {B[n]};", 2 * n, of(lambda a, b, c: a * b))
        forms.add(
            f"mad.wide.{type_} {wide}, {A[n]}, {B[n]}, {C[2 * n]};",
            2 * n,
            lambda a, b, c: view(a, type_) * view(b, type_) + c,
        )
    if type_[0] == "s":
        forms.add(f"neg.{type_} {D[n]}, {A[n]};", n, of(lambda a, b, c: -a))
        forms.add(f"abs.{type_} {D[n]}, {A[n]};", n, of(lambda a, b, c: abs(a)))
    forms.check({"division by zero"})


@pytest.mark.parametrize("type_", BITS)
def test_logic_and_selection(type_):
    forms = Forms()
    n = bits_of(type_)
    two = f"{D[n]}, {A[n]}, {B[n]};"
    forms.add(f"and.{type_} {two}", n, lambda a, b, c: a & b)
    forms.add(f"or.{type_} {two}", n, lambda a, b, c: a | b)
    forms.add(f"xor.{type_} {two}", n, lambda a, b, c: a ^ b)
    forms.add(f"not.{type_} {D[n]}, {A[n]};", n, lambda a, b, c: ~a)
    forms.add(f"mov.{type_} {D[n]}, {A[n]};", n, lambda a, b, c: a)
    compared = f"setp.lt.u{n} %p2, {A[n]}, {B[n]};"
    mask = (1 << n) - 1
    for kind in "bus":
        forms.add(
            f"{compared} selp.{kind}{n} {two[:-1]}, %p2;",
            n,
            lambda a, b, c: a if a & mask < b & mask else b,
        )
    forms.check()


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts(bits):
    forms = Forms()
    by = B[32]
    for kind in "bus":
        type_ = f"{kind}{bits}"
        forms.add(
            f"shr.{type_} {D[bits]}, {A[bits]}, {by};",
            bits,
            lambda a, b, c, type_=type_: view(a, type_) >> min(b & 0xFFFFFFFF, bits),
        )
    forms.add(
        f"shl.b{bits} {D[bits]}, {A[bits]}, {by};", bits, lambda a, b, c: a << min(b & 0xFFFFFFFF, bits)
    )
    forms.check()


def test_funnel_shifts():
    forms = Forms()

    def both(a, b):
        return (b & 0xFFFFFFFF) << 32 | a & 0xFFFFFFFF

    for mode, amount in (("wrap", lambda c: c & 31), ("clamp", lambda c: min(c & 0xFFFFFFFF, 32))):
        operands = "%r14, %r11, %r12, %r13;"
        forms.add(f"shf.l.{mode}.b32 {operands}", 32, lambda a, b, c, n=amount: both(a, b) << n(c) >> 32)
        forms.add(f"shf.r.{mode}.b32 {operands}", 32, lambda a, b, c, n=amount: both(a, b) >> n(c))
    forms.check()


def test_three_inputs_at_once():
    forms = Forms()
    for table in (0x80, 0xFE, 0x96, 0xCA, 0x01, 0xE4):

        def expected(a, b, c, table=table):
            return sum(
                (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i for i in range(32)
            )

        forms.add(f"lop3.b32 %r14, %r11, %r12, %r13, {table};", 32, expected)
    forms.check()


@pytest.mark.parametrize("bits", [32, 64])
def test_counting_bits(bits):
    forms = Forms()
    mask = (1 << bits) - 1
    a_ = A[bits]
    forms.add(f"popc.b{bits} %r14, {a_};", 32, lambda a, b, c: (a & mask).bit_count())
    forms.add(f"clz.b{bits} %r14, {a_};", 32, lambda a, b, c: bits - (a & mask).bit_length())
    forms.add(
        f"brev.b{bits} {D[bits]}, {a_};",
        bits,
        lambda a, b, c: int(f"{a & mask:0{bits}b}"[::-1], 2),
    )
    for kind in "us":

        def highest(a, b, c, type_=f"{kind}{bits}"):
            value = view(a, type_)
            return (~value if value < 0 else value).bit_length() - 1

        def to_the_top(a, b, c, highest=highest):
            place = highest(a, b, c)
            return place if place < 0 else bits - 1 - place

        forms.add(f"bfind.{kind}{bits} %r14, {a_};", 32, highest)
        forms.add(f"bfind.shiftamt.{kind}{bits} %r14, {a_};", 32, to_the_top)
    forms.check()


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_fields(bits):
    forms = Forms()
    for kind in "us":

        def field(a, b, c, signed=kind == "s"):
            at, length = b & 255, c & 255
            sign = 0
            if signed and length:
                sign = a >> min(at + length - 1, bits - 1) & 1
            return sum(
                ((a >> (at + i) & 1) if i < length and at + i < bits else sign) << i for i in range(bits)
            )

        forms.add(f"bfe.{kind}{bits} {D[bits]}, {A[bits]}, %r12, %r13;", bits, field)

    def insert(a, b, c):
        at, length = c & 255, 9
        for i in range(length):
            if at + i < bits:
                b = b & ~(1 << (at + i)) | (a >> i & 1) << (at + i)
        return b

    forms.add(f"bfi.b{bits} {D[bits]}, {A[bits]}, {B[bits]}, %r13, 9;", bits, insert)
    forms.check()


def test_bytes_permuted():
    forms = Forms()

    def expected(a, b, c):
        source = (b & 0xFFFFFFFF) << 32 | a & 0xFFFFFFFF
        out = 0
        for i in range(4):
            select = c >> 4 * i & 15
            byte = source >> 8 * (select & 7) & 255
            out |= (byte if select < 8 else 255 * (byte >> 7)) << 8 * i
        return out

    forms.add("prmt.b32 %r14, %r11, %r12, %r13;", 32, expected)
    forms.add("prmt.b32 %r14, %r11, %r12, 0x3b0f;", 32, lambda a, b, c: expected(a, b, 0x3B0F))
    forms.check()


CONVERTED = [f"{kind}{bits}" for bits in (8, 16, 32, 64) for kind in "us"]


def test_conversions():
    forms = Forms()
    registers = {8: 16, 16: 16, 32: 32, 64: 64}
    for to, source in itertools.product(CONVERTED, CONVERTED):
        register = registers[bits_of(to)]
        forms.add(
            f"cvt.{to}.{source} {D[register]}, {A[registers[bits_of(source)]]};",
            register,
            lambda a, b, c, to=to, source=source: view(view(a, source), to),  # a wider register gets the sign
        )
    forms.check()


def test_a_wider_register_is_cut_and_extended():
    forms = Forms()
    forms.add("cvt.s64.s8 %rd4, %rd1;", 64, lambda a, b, c: view(a, "s8"))
    forms.add("cvt.s8.s64 %rd4, %rd1;", 64, lambda a, b, c: view(a, "s8"))
    forms.check()


@pytest.mark.parametrize("type_", INTEGERS + BITS)
def test_comparisons(type_):
    forms = Forms()
    n = bits_of(type_)
    known = {"b": ("eq", "ne"), "s": COMPARE, "u": {**COMPARE, **UNSIGNED}}[type_[0]]
    for how in known:
        compare = {**COMPARE, **UNSIGNED}[how]
        forms.add(
            f"setp.{how}.{type_} %p1, {A[n]}, {B[n]};",
            1,
            lambda a, b, c, compare=compare: compare(view(a, type_), view(b, type_)),
        )
    forms.check()


@pytest.mark.parametrize(
    ("name", "combine"), [("and", operator.and_), ("or", operator.or_), ("xor", operator.xor)]
)
def test_predicates(name, combine):
    forms = Forms()
    less = "setp.lt.u64 %p2, %rd1, %rd2; setp.lt.u64 %p3, %rd2, %rd3;"

    def both(a, b, c):
        return combine(a < b, b < c)

    forms.add(f"{less} {name}.pred %p1, %p2, %p3;", 1, both)
    forms.add(
        f"{less} not.pred %p4, %p3; {name}.pred %p1, %p2, %p4;", 1, lambda a, b, c: combine(a < b, b >= c)
    )
    forms.add(f"{less} setp.lt.{name}.u64 %p1, %rd1, %rd2, %p3;", 1, both)
    forms.add(f"{less} setp.lt.{name}.u64 %p1, %rd1, %rd2, !%p3;", 1, lambda a, b, c: combine(a < b, b >= c))
    forms.add(
        f"{less} setp.lt.{name}.u64 %p4|%p1, %rd1, %rd2, %p3;", 1, lambda a, b, c: combine(a >= b, b < c)
    )
    forms.add(f"{less} mov.pred %p1, %p3; mov.pred %p4, -1; {name}.pred %p1, %p1, %p4;", 1,
          lambda a, b, c: combine(b < c, True))  # fmt: skip
    forms.check()


def test_guards_leave_what_was_there():
    forms = Forms()
    text = "mov.u64 %rd4, %rd2; setp.lt.u64 %p2, %rd1, %rd2; "
    forms.add(f"{text} @%p2 mov.u64 %rd4, %rd1;", 64, lambda a, b, c: min(a, b))
    forms.add(f"{text} @!%p2 mov.u64 %rd4, %rd1;", 64, lambda a, b, c: max(a, b))
    forms.check()


def test_pairs():
    forms = Forms()
    forms.add("mov.b64 {%r15, %r16}, %rd1; sub.s32 %r14, %r16, %r15;", 32, lambda a, b, c: (a >> 32) - a)
    forms.add("mov.b64 %rd4, {%r11, %r12};", 64, lambda a, b, c: (b & 0xFFFFFFFF) << 32 | a & 0xFFFFFFFF)
    forms.add("mov.b32 %r14, {%rs1, %rs2};", 32, lambda a, b, c: (b & 0xFFFF) << 16 | a & 0xFFFF)
    forms.add("mov.b32 {%rs5, %rs6}, %r11; sub.s16 %rs4, %rs6, %rs5;", 16, lambda a, b, c: (a >> 16) - a)
    forms.check()


def test_constants():
    forms = Forms()
    for text, value in (("-1", -1), ("0x7fffffffffffffff", 2**63 - 1), ("0b101", 5), ("017", 15), ("3U", 3)):
        forms.add(f"mov.u64 %rd4, {text};", 64, lambda a, b, c, value=value: value)
    forms.add("and.b32 %r14, %r11, -4096;", 32, lambda a, b, c: a & -4096)
    forms.check()
