"""What lanes do: memory of all widths, atomics, shuffles, votes, barriers; counted as warps ask for it."""

import numpy as np
import pytest
from ptx_kernels import download, entry, new_machine, place, run, upload

ORDERS = ["first to last", "last to first", "random"]
WORDS = np.arange(64, dtype=np.uint64) * np.uint64(0x0102030405060708) ^ np.uint64(0x80FF7F0180FF7F01)


def results(body, block=32, order="first to last", words=WORDS, declarations=""):
    """Run a body that leaves the thread's result in %rd1; return the results."""
    machine = new_machine(order=order)
    arrays = [upload(machine, words), upload(machine, np.zeros(block, dtype=np.uint64))]
    store = f"{place(8, '%rd11')} st.global.u64 [%rd0], %rd1; ret;"
    assert run(machine, entry(f"{body}\n{store}", 2, declarations), arrays, block=block) == set()
    return download(machine, arrays[1]).tolist()


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("kind", "us")
def test_loads_of_all_widths(bits, kind):
    register, wide = {8: ("%rs1", "u16"), 16: ("%rs1", "u16"), 32: ("%r4", "u32"), 64: ("%rd1", "")}[bits]
    widened = f"cvt.{kind}64.{kind}{wide[1:]} %rd1, {register};" if wide else ""
    got = results(f"{place(bits // 8)} ld.global.{kind}{bits} {register}, [%rd0]; {widened}")
    expected = WORDS.view(f"{'i' if kind == 's' else 'u'}{bits // 8}")[:32].tolist()
    assert got == [value & (1 << 64) - 1 for value in expected]


@pytest.mark.parametrize(
    "name", ["ld.global.nc", "ld.volatile.global", "ld.relaxed.gpu.global", "ld.global.cg"]
)
def test_loads_of_all_orders(name):
    assert results(f"{place(8)} {name}.u64 %rd1, [%rd0];") == WORDS[:32].tolist()


@pytest.mark.parametrize(("bits", "count"), [(32, 2), (32, 4), (64, 2), (16, 4), (8, 4)])
def test_vectors(bits, count):
    machine = new_machine()
    items = WORDS.view(f"u{bits // 8}")[: 32 * count]
    arrays = [upload(machine, items), upload(machine, np.zeros_like(items))]
    prefix = {8: "%rs", 16: "%rs", 32: "%r1", 64: "%rd1"}[bits]
    names = ", ".join(f"{prefix}{i + 2}" for i in range(count))
    backwards = ", ".join(f"{prefix}{i + 2}" for i in reversed(range(count)))
    size = bits // 8 * count
    body = (
        f"{place(size)} ld.global.v{count}.u{bits} {{{names}}}, [%rd0]; "
        f"{place(size, '%rd11')} st.global.v{count}.b{bits} [%rd0], {{{backwards}}}; ret;"
    )
    assert run(machine, entry(body, 2), arrays) == set()
    got = download(machine, arrays[1], items.dtype).reshape(-1, count)
    assert np.array_equal(got[:, ::-1], items.reshape(-1, count))


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_stores_cut(bits):
    machine = new_machine()
    words = upload(machine, np.zeros(32, dtype=f"u{bits // 8}"))
    minus_7 = f"{place(bits // 8)} cvt.u64.u32 %rd1, %r0; add.s64 %rd1, %rd1, -7;"
    body = f"{minus_7} st.global.u{bits} [%rd0], %rd1; ret;"
    assert run(machine, entry(body), [words]) == set()
    expected = [(i - 7) & (1 << bits) - 1 for i in range(32)]
    assert download(machine, words, f"u{bits // 8}").tolist() == expected


ATOMICS = {
    "add.u64": lambda old, by: old + by,
    "min.u64": min,
    "max.u64": max,
    "and.b64": lambda old, by: old & by,
    "or.b64": lambda old, by: old | by,
    "xor.b64": lambda old, by: old ^ by,
    "exch.b64": lambda old, by: by,
    "inc.u32": lambda old, by: 0 if old >= by else old + 1,
    "dec.u32": lambda old, by: by if old == 0 or old > by else old - 1,
    "min.s32": lambda old, by: min(old, by - (1 << 32 if by >> 31 else 0)),
    "max.s64": lambda old, by: max(old, by - (1 << 64 if by >> 63 else 0)),
}


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("name", ATOMICS)
def test_atomics(name, space):
    bits, dtype = (64, np.uint64) if name.endswith("64") else (32, np.uint32)
    machine = new_machine()
    given = WORDS.view(dtype)[:32]
    arrays = [
        upload(machine, given),
        upload(machine, np.full(1, 9, dtype)),
        upload(machine, np.zeros(32, dtype)),
    ]
    a, b = {64: ("%rd1", "%rd2"), 32: ("%r4", "%r5")}[bits]
    size = bits // 8
    init = {
        64: "mov.u64 %rd3, 9; st.shared.u64 [cell], %rd3;",
        32: "mov.u32 %r6, 9; st.shared.u32 [cell], %r6;",
    }
    setup, at = ("", "[%rd11]")
    if space == "shared":
        setup = f"setp.eq.u32 %p1, %r1, 0; @!%p1 bra $L1; {init[bits]} $L1:\nbar.sync 0;"
        at = "[cell]"
    body = (
        f"{setup} {place(size)} ld.global.u{bits} {a}, [%rd0]; atom.{space}.{name} {b}, {at}, {a}; "
        f"{place(size, '%rd12')} st.global.u{bits} [%rd0], {b}; ret;"
    )
    declared = ".shared .align 8 .b64 cell;"
    assert run(machine, entry(body, 3, declared), arrays) == set()
    olds, old = [], 9
    for by in given.tolist():
        olds.append(old)
        old = ATOMICS[name](old, by) & (1 << bits) - 1
        if name[-3] == "s" and old >> bits - 1:
            old -= 1 << bits
    assert download(machine, arrays[2], dtype).tolist() == [value & (1 << bits) - 1 for value in olds]
    if space == "global":
        assert download(machine, arrays[1], dtype).tolist() == [old & (1 << bits) - 1]


@pytest.mark.parametrize("order", ORDERS)
def test_compare_and_swap(order):
    # Who finds 9 puts a number of its own there: one thread does.
    body = "cvt.u64.u32 %rd2, %r0; add.s64 %rd2, %rd2, 100; atom.global.cas.b64 %rd1, [%rd10], 9, %rd2;"
    got = results(body, order=order, words=np.full(1, 9, dtype=np.uint64))
    assert got.count(9) == 1
    assert {value for value in got if value != 9} == {100 + got.index(9)}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("how", "by", "clamp", "source"),
    [
        ("up", 1, 0, lambda i: i - 1 if i >= 1 else i),
        ("down", 3, 31, lambda i: i + 3 if i + 3 <= 31 else i),
        ("bfly", 5, 31, lambda i: i ^ 5),
        ("idx", 7, 31, lambda i: 7),
        ("idx", 3, 0x181F, lambda i: i // 8 * 8 + 3),
        ("up", 2, 0x1800, lambda i: i - 2 if i % 8 >= 2 else i),
        ("down", 2, 0x181F, lambda i: i + 2 if i % 8 < 6 else i),
    ],
)
def test_shuffles(how, by, clamp, source, order):
    body = (
        f"mul.lo.s32 %r4, %r1, 3; shfl.sync.{how}.b32 %r5|%p1, %r4, {by}, {clamp}, -1; "
        "selp.b32 %r6, 1000, 0, %p1; add.s32 %r5, %r5, %r6; cvt.u64.u32 %rd1, %r5;"
    )
    got = results(body, order=order)
    # Lane 7 of idx is its own source, and that is within bounds.
    inside = [source(i) != i or how == "idx" for i in range(32)]
    assert got == [3 * source(i) + 1000 * ok for i, ok in enumerate(inside)]


@pytest.mark.parametrize("order", ORDERS)
def test_votes(order):
    odd = "and.b32 %r4, %r1, 1; setp.eq.u32 %p1, %r4, 1; "
    ballot = results(odd + "vote.sync.ballot.b32 %r5, %p1, -1; cvt.u64.u32 %rd1, %r5;", order=order)
    assert ballot == [0xAAAAAAAA] * 32
    for mode, negated, expected in (
        ("any", "", 1),
        ("all", "", 0),
        ("uni", "", 0),
        ("any", "!", 1),
        ("all", "!", 0),
    ):
        body = f"{odd} vote.sync.{mode}.pred %p2, {negated}%p1, -1; selp.u64 %rd1, 1, 0, %p2;"
        assert results(body, order=order) == [expected] * 32, mode
    for mode, bound, expected in (("all", 32, 1), ("uni", 0, 1), ("any", 0, 0)):
        body = f"setp.lt.u32 %p1, %r1, {bound}; vote.sync.{mode}.pred %p2, %p1, -1; selp.u64 %rd1, 1, 0, %p2;"
        assert results(body, order=order) == [expected] * 32, mode


@pytest.mark.parametrize("order", ORDERS)
def test_members_of_two_masks_vote_apart(order):
    body = (
        "setp.lt.u32 %p1, %r1, 12; selp.b32 %r4, 0xfff, 0xfffff000, %p1; setp.eq.u32 %p2, %r1, 20; "
        "vote.sync.any.pred %p3, %p2, %r4; selp.u64 %rd1, 1, 0, %p3;"
    )
    assert results(body, order=order) == [0] * 12 + [1] * 20


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_that_left_are_not_waited_for(order):
    machine = new_machine(order=order)
    words = upload(machine, np.zeros(32, dtype=np.uint64))
    body = (
        f"setp.lt.u32 %p1, %r1, 5; @%p1 ret; {place(8)} setp.ge.u32 %p1, %r1, 0; "
        "vote.sync.ballot.b32 %r5, %p1, -1; cvt.u64.u32 %rd1, %r5; st.global.u64 [%rd0], %rd1; ret;"
    )
    assert run(machine, entry(body), [words]) == set()
    assert download(machine, words).tolist() == [0] * 5 + [0xFFFFFFE0] * 27


def test_special_registers():
    body = (
        "mov.u32 %r4, %laneid; mov.u32 %r5, %ntid.x; mov.u32 %r6, %nctaid.x; mov.u32 %r7, WARP_SZ; "
        "mad.lo.u32 %r4, %r5, 1000, %r4; mad.lo.u32 %r4, %r6, 1000000, %r4; add.s32 %r4, %r4, %r7; "
        "mov.u32 %r8, %tid.y; add.s32 %r4, %r4, %r8; cvt.u64.u32 %rd1, %r4;"
    )
    assert results(body, block=48) == [1_048_032 + i % 32 for i in range(48)]
    for name, expected in (
        ("eq", lambda i: 1 << i),
        ("lt", lambda i: (1 << i) - 1),
        ("le", lambda i: (2 << i) - 1),
        ("gt", lambda i: 0xFFFFFFFF & ~((2 << i) - 1)),
        ("ge", lambda i: 0xFFFFFFFF & ~((1 << i) - 1)),
    ):
        got = results(f"mov.u32 %r4, %lanemask_{name}; cvt.u64.u32 %rd1, %r4;")
        assert got == [expected(i) for i in range(32)], name


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_in_a_loop(order):
    # Each round a thread takes what the thread 32 away left: right with a barrier on both sides.
    body = (
        "mul.wide.u32 %rd4, %r1, 8; mov.u64 %rd7, tile; add.s64 %rd5, %rd7, %rd4; xor.b32 %r4, %r1, 32; "
        "mul.wide.u32 %rd4, %r4, 8; add.s64 %rd6, %rd7, %rd4; cvt.u64.u32 %rd1, %r1; mov.u32 %r5, 0;\n$L1:\n"
        "st.shared.u64 [%rd5], %rd1; bar.sync 0; ld.shared.u64 %rd1, [%rd6]; bar.sync 0; "
        "add.s64 %rd1, %rd1, 1000; add.s32 %r5, %r5, 1; setp.lt.u32 %p1, %r5, 3; @%p1 bra $L1;"
    )
    declared = ".shared .align 8 .b8 tile[512];"
    assert results(body, 64, order, declarations=declared) == [3000 + (i ^ 32) for i in range(64)]


def test_the_counts_of_a_launch():
    machine = new_machine()
    words = upload(machine, np.zeros(128, dtype=np.uint64))
    # 64 threads read every second word, then the 32 of the first warp write a word each.
    body = (
        "mul.wide.u32 %rd0, %r0, 16; add.s64 %rd0, %rd10, %rd0; ld.global.u64 %rd1, [%rd0]; "
        f"bar.sync 0; setp.ge.u32 %p1, %r0, 32; @%p1 ret; {place(8)} st.global.u64 [%rd0], %rd1; ret;"
    )
    with machine.recorded() as events:
        assert run(machine, entry(body), [words], block=64) == set()
    (launch,) = events
    assert (launch.what, launch.kernel, launch.grid) == ("launch", "k", 1)
    counts = launch.counts
    # Before the jump 10 instructions beside the parameter's load, behind it 4 for the first warp.
    assert counts["warp_instructions"] == 2 * 10 + 4
    assert counts["thread_instructions"] == 64 * 10 + 32 * 4
    assert counts["barriers"] == 1
    assert (counts["load_requests"], counts["load_sectors"], counts["load_bytes"]) == (2, 32, 512)
    assert (counts["store_requests"], counts["store_sectors"], counts["store_bytes"]) == (1, 8, 256)
    assert (counts["sectors_read"], counts["sectors_written"]) == (32, 8)
    assert counts["atomic_requests"] == 0
