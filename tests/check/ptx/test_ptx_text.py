"""Only PTX that is known runs: anything else is an error that names it."""

import pytest
from ptx_kernels import entry

from gpuhmm.check.ptx import PtxError
from gpuhmm.check.ptx.parse import parse
from gpuhmm.check.ptx.translate import translate

UNKNOWN = [
    "add.f32 %f1, %f2, %f3;",
    "add.u8 %rs1, %rs2, %rs3;",
    "add.sat.s32 %r1, %r2, %r3;",
    "add.cc.u32 %r1, %r2, %r3;",
    "add.u32 %r1, %r2;",
    "add.u32 %r1, %r2, %rd3;",
    "add.u64 %r1, %rd2, %rd3;",
    "add.u64 %rd1, %rd2, %q3;",
    "add.u64 %rd1, %rd2, tile;",
    "add.u64 %rd1, %rd2, 1.5;",
    "mul.u32 %r1, %r2, %r3;",
    "mul.wide.u64 %rd1, %rd2, %rd3;",
    "neg.u32 %r1, %r2;",
    "and.u32 %r1, %r2, %r3;",
    "and.b32 %r1, %p2, %r3;",
    "shl.u32 %r1, %r2, %r3;",
    "setp.lo.s32 %p1, %r2, %r3;",
    "setp.lt.b32 %p1, %r2, %r3;",
    "setp.equ.f32 %p1, %f2, %f3;",
    "cvt.sat.u8.u32 %r1, %r2;",
    "cvt.u32.b64 %r1, %rd2;",
    "cvt.u64.u32 %r1, %r2;",
    "cvta.to.shared.u64 %rd1, %rd2;",
    "popc.u32 %r1, %r2;",
    "mov.b128 %rd1, %rd2;",
    "mov.b32 {%r1, %r2}, %rd3;",
    "mov.u64 %rd1, %clock64;",
    "mov.u32 %r1, %warpid;",
    "mov.u64 %rd1, %tid.x;",
    "ld.u64 %rd1, [%rd2];",
    "ld.local.u64 %rd1, [%rd2];",
    "ld.const.u64 %rd1, [%rd2];",
    "ld.global.f64 %rd1, [%rd2];",
    "ld.global.v2.u64 %rd1, [%rd2];",
    "ld.global.v4.u64 {%rd1, %rd2, %rd3, %rd4}, [%rd2];",
    "ld.global.v3.u32 {%r1, %r2, %r3}, [%rd2];",
    "ld.global.u64 %r1, [%rd2];",
    "ld.global.u64 %rd1, [%rd2+%rd3];",
    "ld.global.u64 %rd1, [%rs2];",
    "ld.param.u64 %rd1, [nobody];",
    "ld.param.u64 %rd1, [p0+8];",
    "st.param.u64 [p0], %rd1;",
    "st.global.u64 [%rd1], %r2;",
    "atom.global.add.f32 %f1, [%rd1], %f2;",
    "atom.global.add.s64 %rd1, [%rd1], %rd2;",
    "atom.global.min.b64 %rd1, [%rd1], %rd2;",
    "atom.global.cas.b64 %rd1, [%rd1], %rd2;",
    "red.global.exch.b64 [%rd1], %rd2;",
    "bar.sync 1;",
    "bar.sync 0, 64;",
    "bar.red.popc.u32 %r1, 0, %p1;",
    "bar.warp.sync %r1, %r2;",
    "shfl.sync.up.b64 %rd1, %rd2, 1, 0, -1;",
    "@%p1 shfl.sync.up.b32 %r1, %r2, 1, 0, -1;",
    "vote.sync.none.pred %p1, %p2, -1;",
    "activemask.b32 %r1;",
    "bra $nowhere;",
    "brx.idx %r1, table;",
    "call.uni function;",
    "trap;",
    "elect.sync %r1|%p1, -1;",
    ".local .align 8 .b8 depot[16];",
    "{ .reg .b32 %inner; }",
]


@pytest.mark.parametrize("text", UNKNOWN)
def test_unknown_instructions_are_errors(text):
    with pytest.raises(PtxError, match=r"line 1\d"):
        translate(entry(f"{text} ret;"))


def test_an_error_names_the_instruction():
    with pytest.raises(PtxError, match=r"unknown instruction \(line 11: @%p1 sin\.approx\.f32 %f1, %f2\)"):
        translate(entry("ret;\n@%p1 sin.approx.f32 %f1, %f2;"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (".visible .entry a() { ret; } .visible .entry b() { ret; }", "one entry"),
        (".func f() { ret; }\n.visible .entry a() { ret; }", "functions"),
        (".visible .entry a(.param .f32 x) { ret; }", "must be an integer"),
        (".visible .entry a(.param .align 8 .b8 x[16]) { ret; }", "must be an integer"),
        (".extern .shared .align 8 .b8 s[];\n.visible .entry a() { ret; }", "shared memory"),
        (".visible .entry a() { $L: .branchtargets $L; }", "branchtargets"),
    ],
)
def test_unknown_modules_are_errors(text, match):
    with pytest.raises(PtxError, match=match):
        parse(text)


def test_what_is_read():
    text = """
.version 9.0 // a comment; with a semicolon
.target sm_90
.common .global .align 8 .u64 NumbaEnv;
.visible .shared .align 8 .b8 first[12];
.visible .entry name(
    .param .u64 name_param_0, .param .u32 name_param_1
)
{
    .reg .pred %p<3>;
    .reg .b64 %rd<5>, %single;
    .shared .align 16 .b64 second[2];
    ld.param.u64 %rd1, [name_param_0];
    setp.eq.s64 %p1, %rd1, 0;
    @!%p1 bra $L__BB0_2;
    bra.uni $L__BB0_1;

$L__BB0_1:
    .pragma "nounroll";
    st.global.v2.u64 [%rd1+-16], {%rd2, %rd3};
$L__BB0_2:
    ret;
}
"""
    kernel = parse(text)
    assert kernel.name == "name"
    assert kernel.parameters == {"name_param_0": 0, "name_param_1": 1}
    assert kernel.shared == {"first": 0, "second": 16}
    assert kernel.shared_size == 32
    assert kernel.labels == {"$L__BB0_1": 2, "$L__BB0_2": 3}
    assert [[one.name for one in block] for block in kernel.blocks] == [
        ["ld.param.u64", "setp.eq.s64", "bra"],
        ["bra.uni"],
        ["st.global.v2.u64"],
        ["ret"],
    ]
    jump, store = kernel.blocks[0][2], kernel.blocks[2][0]
    assert (jump.guard, jump.operands, jump.line) == ("!%p1", ("$L__BB0_2",), 15)
    assert store.operands == ("[%rd1+-16]", "{%rd2, %rd3}")
    assert store.line == 20
    assert kernel.bits_of("%rd4") == kernel.bits_of("%single") == 64
    with pytest.raises(PtxError, match="declared"):
        kernel.bits_of("%r1")
