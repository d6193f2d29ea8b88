"""The state of a modelled GPU, as few arrays that compiled code reads and writes.

Few, because compiled functions hand all of them on: a row is a µTLB, an SM, a warp or a block, and its
columns have the names below.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.device.config import DeviceConfig
from gpuhmm.coalesce.device.program import Program

#: A time that never comes.
NEVER = (1 << 63) - 1
#: Replays that may be on their way at once; later ones are joined with the last of them.
REPLAYS_UNDER_WAY = 64

#: Places of :attr:`Machine.device`: limits and times of the configuration.
UTLBS, SMS_PER_UTLB, WARPS_PER_SM, BLOCKS_PER_SM, THREADS_PER_SM, OUTSTANDING, BUFFER = range(7)
FAULT_INTERVAL, HIT_INTERVAL, ACCESS_LATENCY, REPLAY_LATENCY, REPLAY_JITTER = range(7, 12)
BLOCK_INTERVAL, ISSUE_INTERVAL, ISSUE_JITTER, LAUNCH_LATENCY, SEED = range(12, 17)
#: The buffer's counts; the kernel, its next block and those not done; whether one has just begun; replays.
GET, PUT, KERNEL, NEXT_BLOCK, BLOCKS_LEFT, STARTED, REPLAYS = range(17, 24)
#: Counters, and accesses outstanding.
SAME_UTLB, CROSS_UTLB, REFAULTS, OVERFLOWS, ACCESSES, HITS, STALLED = range(24, 31)
#: When the GMMU can write the next fault.
GMMU_FREE = 31
#: Whether faults of prefetches are written.
PREFETCHES = 32
#: When each replay was asked for, by its number modulo REPLAYS_UNDER_WAY.
REPLAY_TIMES = 33

#: Columns of kernels: first block, threads of a block, blocks on an SM at once.
K_BLOCKS, K_THREADS, K_RESIDENCY = range(3)
#: Columns of µTLBs: when it is free; the warp slot that it serves or -1; whether that one waits for room
#: among the outstanding faults; the SM served last; replays that reached it; outstanding faults; of a
#: retry under way the next one, the end, and those kept so far; how much later than the nearest one a
#: replay reaches it; the turn that the GMMU gave it for a miss, NEVER for none.
U_FREE, U_SERVING, U_BLOCKED, U_LAST_SM, U_REPLAYS_SEEN = range(5)
U_OUT_COUNT, U_RETRY_NEXT, U_RETRY_END, U_RETRY_KEPT, U_SKEW, U_TURN = range(5, 11)
#: Columns of outstanding faults: the access, the warp slot, whether it was written into the buffer.
O_ACCESS, O_SLOT, O_WRITTEN = range(3)
#: Columns of SMs: its queue (a ring), warp slots and block slots that are free (stacks), threads held.
S_QUEUE_HEAD, S_QUEUE_COUNT, S_FREE_WARPS_COUNT, S_FREE_BLOCKS_COUNT, S_THREADS_HELD = range(5)
#: What an SM has rows of slots for: warps that have an access to issue, by time; free ones.
QUEUE, FREE_WARPS, FREE_BLOCKS = range(3)
#: Columns of warps: its access and the end of these; the next page of it; accesses outstanding; when it may
#: issue; when all data that is not outstanding has come; its block slot; what it is at.
W_OP, W_END, W_PAGE, W_PENDING, W_READY, W_DATA, W_BLOCK, W_STATE = range(8)
#: What a warp slot is at.
FREE, QUEUED, WAITING, AT_BARRIER, ENDING = range(5)
#: Columns of blocks: warps that are not done, warps at the barrier, the time of the last of these.
B_LIVE, B_ARRIVED, B_TIME = range(3)
#: Columns of entries of the fault buffer.
F_TIME, F_PAGE, F_ACCESS, F_SM = range(4)
#: An access with its flags in one byte: the bits of the access, and where the flags begin.
OP_ACCESS, OP_FLAGS = 15, 4

I64 = npt.NDArray[np.int64]


class Machine(NamedTuple):
    """All arrays of a GPU and of the program that it runs; int64 and with the columns above if not said."""

    device: I64
    kernels: I64
    block_warps: I64
    warp_ops: I64
    op_pages: I64
    #: uint8: the access, and its flags from bit OP_FLAGS on.
    op_kind: npt.NDArray[np.uint8]
    #: uint32: page numbers.
    pages: npt.NDArray[np.uint32]
    #: SMs in the order in which a grid's first blocks go to them.
    sm_order: I64
    #: By µTLB: when it acts next.
    next_time: I64
    utlb: I64
    #: By µTLB and outstanding fault: the page, uint32, and the rest.
    out_page: npt.NDArray[np.uint32]
    out: I64
    #: By page: outstanding faults of all µTLBs, int32.
    page_out: npt.NDArray[np.int32]
    sm: I64
    #: By SM, QUEUE and so on: slots.
    slots: I64
    warp: I64
    block: I64
    #: By count modulo the entries of the buffer.
    faults: I64


def first_blocks(config: DeviceConfig) -> I64:
    """Return the order of SMs for the first blocks of a grid: one of each µTLB first, GPCs in turn."""
    utlbs = np.arange(config.utlbs)
    gpcs = config.gpc(utlbs)
    within = utlbs - np.searchsorted(gpcs, gpcs)
    order = np.lexsort((gpcs, within))
    rounds = [order * config.sms_per_utlb + turn for turn in range(config.sms_per_utlb)]
    return np.concatenate(rounds).astype(np.int64)


def machine(config: DeviceConfig, program: Program, npages: int, seed: int) -> Machine:
    """Return a GPU at time 0 that holds nothing yet."""

    def zeros(*shape: int, dtype: Any = np.int64) -> Any:
        return np.zeros(shape, dtype=dtype)

    utlbs, sms = config.utlbs, config.sms
    warps, blocks = config.warps_per_sm, config.blocks_per_sm
    device = zeros(REPLAY_TIMES + REPLAYS_UNDER_WAY)
    device[:GET] = [
        utlbs,
        config.sms_per_utlb,
        warps,
        blocks,
        config.threads_per_sm,
        config.utlb_outstanding,
        config.buffer_entries,
        config.fault_interval_ns,
        config.hit_interval_ns,
        config.access_latency_ns,
        config.replay_latency_ns,
        config.replay_jitter_ns,
        config.block_interval_ns,
        config.issue_interval_ns,
        config.issue_jitter_ns,
        config.launch_latency_ns,
        seed,
    ]
    device[PREFETCHES] = 1
    kernels = zeros(program.kernels + 1, 3)
    kernels[:, K_BLOCKS] = program.kernel_blocks
    kernels[:-1, K_THREADS] = program.kernel_threads
    kernels[:-1, K_RESIDENCY] = program.kernel_residency
    utlb = zeros(utlbs, 11)
    utlb[:, U_TURN] = NEVER
    utlb[:, U_SKEW] = np.random.default_rng(seed).integers(0, config.replay_skew_ns, utlbs, endpoint=True)
    utlb[:, U_SERVING] = -1
    sm = zeros(sms, 5)
    sm[:, S_FREE_WARPS_COUNT] = warps
    sm[:, S_FREE_BLOCKS_COUNT] = blocks
    slots = zeros(sms, 3, max(warps, blocks))
    slots[:, FREE_WARPS, :warps] = np.arange(sms * warps).reshape(sms, warps)[:, ::-1]
    slots[:, FREE_BLOCKS, :blocks] = np.arange(sms * blocks).reshape(sms, blocks)[:, ::-1]
    return Machine(
        device=device,
        kernels=kernels,
        block_warps=program.block_warps,
        warp_ops=program.warp_ops,
        op_pages=program.op_pages,
        op_kind=program.op_access | program.op_flags << np.uint8(OP_FLAGS),
        pages=program.pages,
        sm_order=first_blocks(config),
        next_time=np.full(utlbs, NEVER, dtype=np.int64),
        utlb=utlb,
        out_page=zeros(utlbs, config.utlb_outstanding, dtype=np.uint32),
        out=zeros(utlbs, config.utlb_outstanding, 3),
        page_out=zeros(npages, dtype=np.int32),
        sm=sm,
        slots=slots,
        warp=zeros(sms * warps, 8),
        block=zeros(sms * blocks, 3),
        faults=zeros(config.buffer_entries, 4),
    )
