"""Every kind of mistake in a kernel is found, in every order of threads, and what is right is not."""

import numpy as np
import pytest
from ptx_kernels import download, entry, new_machine, place, run, upload

from gpuhmm.check.ptx import Kernel

ORDERS = ["first to last", "last to first", "random"]
MINE = place(8)
#: 64 words of shared memory, the thread's own in %rd5 and that of the thread 32 away in %rd6.
SHARED = (
    "mul.wide.u32 %rd4, %r1, 8; mov.u64 %rd7, tile; add.s64 %rd5, %rd7, %rd4; "
    "xor.b32 %r4, %r1, 32; mul.wide.u32 %rd4, %r4, 8; add.s64 %rd6, %rd7, %rd4;\n"
)
TILE = ".shared .align 8 .b8 tile[512];"

#: Name -> body over one array of 64 words, a thread each, and the kinds that must be found.
KERNELS = {
    "each its own": (f"{MINE} st.global.u64 [%rd0], %rd0; ret;", set()),
    "the last word": (f"{MINE} ld.global.u64 %rd1, [%rd0]; ret;", set()),
    "one beyond": (f"{MINE} ld.global.u64 %rd1, [%rd0+8]; ret;", {"out of bounds"}),
    "one below": (f"{MINE} st.global.u64 [%rd0+-8], %rd0; ret;", {"out of bounds", "race"}),
    "half beyond": (f"{MINE} ld.global.v2.u64 {{%rd1, %rd2}}, [%rd0]; ret;", {"out of bounds", "misaligned"}),
    "a pair at an odd word": (
        "setp.ne.u32 %p1, %r0, 0; @%p1 ret; ld.global.v2.u64 {%rd1, %rd2}, [%rd10+8]; ret;",
        {"misaligned"},
    ),
    "a null pointer": ("mov.u64 %rd1, 0; st.global.u8 [%rd1], %rs1; ret;", {"out of bounds"}),
    "stores of different values": ("cvt.u64.u32 %rd1, %r0; st.global.u64 [%rd10], %rd1; ret;", {"race"}),
    "stores of one value": ("mov.u64 %rd1, 1; st.global.u64 [%rd10], %rd1; ret;", {"race of one value"}),
    "one reads what another writes": (
        f"{MINE} ld.global.u64 %rd1, [%rd10]; st.global.u64 [%rd0], %rd0; ret;",
        {"race"},
    ),
    "all write and one reads": (
        f"{MINE} st.global.u64 [%rd0], %rd0; setp.eq.u32 %p1, %r0, 0; "
        "@%p1 ld.global.u64 %rd1, [%rd10+504]; ret;",
        {"race"},
    ),
    "atomics": ("cvt.u64.u32 %rd1, %r0; atom.global.min.u64 %rd2, [%rd10], %rd1; ret;", set()),
    "an atomic beside a store": (
        "cvt.u64.u32 %rd1, %r0; setp.eq.u32 %p1, %r0, 9; @%p1 st.global.u64 [%rd10], %rd1; "
        "red.global.min.u64 [%rd10], %rd1; ret;",
        {"race"},
    ),
    "an atomic beside a load": (
        "cvt.u64.u32 %rd1, %r0; ld.global.u64 %rd2, [%rd10]; red.global.min.u64 [%rd10], %rd1; ret;",
        {"race"},
    ),
    "a barrier between reads and a write": (
        "ld.global.u64 %rd1, [%rd10]; bar.sync 0; setp.ne.u32 %p1, %r0, 7; @%p1 ret; "
        "st.global.u64 [%rd10], %rd1; ret;",
        set(),
    ),
    "a barrier between a write and reads": (
        "setp.ne.u32 %p1, %r0, 7; @%p1 bra $L1; st.global.u64 [%rd10], %rd10; $L1:\n"
        "bar.sync 0; ld.global.u64 %rd1, [%rd10]; ret;",
        set(),
    ),
    "a warp barrier between a write and a read of one warp": (
        f"{MINE} st.global.u64 [%rd0], %rd0; bar.warp.sync -1; xor.b32 %r5, %r0, 1; "
        "mul.wide.u32 %rd1, %r5, 8; add.s64 %rd1, %rd10, %rd1; ld.global.u64 %rd2, [%rd1]; ret;",
        set(),
    ),
    "a warp barrier between a write and a read of another warp": (
        f"{MINE} st.global.u64 [%rd0], %rd0; bar.warp.sync -1; xor.b32 %r5, %r0, 32; "
        "mul.wide.u32 %rd1, %r5, 8; add.s64 %rd1, %rd10, %rd1; ld.global.u64 %rd2, [%rd1]; ret;",
        {"race"},
    ),
    "a barrier that some left before": (
        "setp.lt.u32 %p1, %r1, 3; @%p1 ret; bar.sync 0; ret;",
        {"barrier not reached by all"},
    ),
    "two barriers for two warps": (
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra $L1; bar.sync 0; ret; $L1:\nbar.sync 0; ret;",
        {"barrier not reached by all"},
    ),
    "a warp barrier that not all come to": (
        "setp.ge.u32 %p1, %r1, 3; @%p1 bra $L1; bar.warp.sync 15; ret; $L1:\nbar.sync 0; ret;",
        {"barrier not reached by all"},
    ),
    "a shuffle that not all come to": (
        "setp.ge.u32 %p1, %r1, 3; @%p1 bra $L1; bar.warp.sync 0xf; $L1:\nbar.warp.sync 0xf0; ret;",
        {"not all lanes of a mask"},
    ),
    "shared memory beyond": (f"{SHARED} st.shared.u64 [%rd5+8], %rd5; ret;", {"out of bounds", "race"}),
    "shared memory that nobody wrote": (
        f"{SHARED} ld.shared.u64 %rd1, [%rd5]; ret;",
        {"read before written"},
    ),
    "shared memory without a barrier": (
        f"{SHARED} st.shared.u64 [%rd5], %rd4; ld.shared.u64 %rd1, [%rd6]; ret;",
        {"race", "read before written"},
    ),
    "shared memory with a barrier": (
        f"{SHARED} st.shared.u64 [%rd5], %rd4; bar.sync 0; ld.shared.u64 %rd1, [%rd6]; ret;",
        set(),
    ),
    "a division by zero": ("div.u64 %rd1, %rd10, 0; ret;", {"division by zero"}),
    "a loop of another length for each": (
        f"{MINE} mov.u64 %rd1, 0; $L1:\nadd.s64 %rd1, %rd1, 1; cvt.u64.u32 %rd2, %r0; "
        "setp.le.u64 %p1, %rd1, %rd2; @%p1 bra $L1; st.global.u64 [%rd0], %rd1; ret;",
        set(),
    ),
}
#: What only some orders show beside the rest.
SOMETIMES = {"race", "read before written"}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel(name, order):
    body, kinds = KERNELS[name]
    machine = new_machine(order=order)
    words = upload(machine, np.zeros(64, dtype=np.uint64))
    found = run(machine, entry(body, declarations=TILE), [words], block=64)
    if kinds & SOMETIMES and len(kinds) > 1:
        assert found
        assert found <= kinds
    else:
        assert found == kinds


def test_a_kernel_without_an_end():
    machine = new_machine()
    words = upload(machine, np.zeros(1, dtype=np.uint64))
    assert run(machine, entry("$L1:\nbra $L1;"), [words]) == {"endless"}


def test_memory_that_nobody_wrote():
    machine = new_machine()
    words = upload(machine, np.zeros(64, dtype=np.uint64))
    machine.streams.wait_for_all()
    machine.memory.find(words.address, 8, "").written[8:12] = 0
    kernel = entry(f"{MINE} ld.global.u64 %rd1, [%rd0]; ret;")
    assert run(machine, kernel, [words], block=64) == {"read before written"}
    stored = entry(f"{MINE} st.global.u64 [%rd0], %rd0; ld.global.u64 %rd1, [%rd0]; ret;")
    assert run(machine, stored, [words], block=64) == set()


def test_a_copy_to_the_host_of_what_nobody_wrote():
    machine = new_machine()
    made = machine.memory.allocate(64)
    out = np.zeros(8, dtype=np.uint64)
    machine.download(out.ctypes.data, made.address, 64, 0, waits=True)
    assert machine.take_mistakes() == ["copy to the host: read before written, 64 times: 64 of 64 bytes"]
    assert not machine.mistakes()


@pytest.mark.parametrize("order", ORDERS)
def test_small_items_beside_each_other_are_no_race(order):
    machine = new_machine(order=order)
    items = upload(machine, np.zeros(64, dtype=np.uint8))
    body = f"{place(1)} cvt.u16.u32 %rs1, %r0; st.global.u8 [%rd0], %rs1; ret;"
    assert run(machine, entry(body), [items], block=64) == set()
    assert download(machine, items, np.uint8).tolist() == list(range(64))


def test_what_one_launch_wrote_another_may_read():
    machine = new_machine()
    words = upload(machine, np.zeros(64, dtype=np.uint64))
    assert run(machine, entry(f"{MINE} st.global.u64 [%rd0], %rd0; ret;"), [words], block=64) == set()
    assert run(machine, entry("ld.global.u64 %rd1, [%rd10+8]; ret;"), [words], block=64) == set()


@pytest.mark.parametrize("order", ORDERS)
def test_threads_of_several_blocks_race(order):
    machine = new_machine(order=order)
    words = upload(machine, np.zeros(128, dtype=np.uint64))
    body = f"{place(8)} ld.global.u64 %rd1, [%rd10]; bar.sync 0; st.global.u64 [%rd0], %rd0; ret;"
    assert run(machine, entry(body), [words], block=64) == set()
    assert run(machine, entry(body), [words], grid=2, block=64) == {"race"}


def test_a_view_is_all_that_may_be_touched():
    machine = new_machine()
    words = upload(machine, np.zeros(64, dtype=np.uint64))
    part = type(words)(words.address + 8, 8 * 62, 8)
    inner = entry("ld.global.u64 %rd1, [%rd10]; ld.global.u64 %rd1, [%rd10+488]; ret;")
    assert run(machine, inner, [part]) == set()
    assert run(machine, entry("ld.global.u64 %rd1, [%rd10+-8]; ret;"), [part]) == {"out of bounds"}
    assert run(machine, entry("ld.global.u64 %rd1, [%rd10+496]; ret;"), [part]) == {"out of bounds"}


def test_a_finding_says_where():
    machine = new_machine()
    words = upload(machine, np.zeros(64, dtype=np.uint64))
    kernel = entry(f"setp.ne.u32 %p1, %r0, 70; @%p1 ret;\n{MINE} ld.global.u64 %rd1, [%rd0];\nret;")

    machine.launch(Kernel.of("k", kernel), [words.address], [words], 2, 64)
    machine.streams.wait_for_all()
    (line,) = machine.take_mistakes()
    assert line.startswith("k: out of bounds, 1 times: thread 6 of block 1, address 0x")
    assert line.endswith("ld.global.u64 %rd1, [%rd0];")


def test_launches_that_cuda_refuses():
    machine = new_machine()
    words = upload(machine, np.zeros(64, dtype=np.uint64))
    kernel = entry("ret;")
    for grid, block in ((0, 32), (1, 0), (1, 1025)):
        with pytest.raises(ValueError, match="a launch must have"):
            run(machine, kernel, [words], grid, block)
    with pytest.raises(ValueError, match="1 arguments must be given"):
        run(machine, kernel, [words, words])
