"""The state of a modelled GPU, as arrays that compiled code reads and writes."""

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

#: Places of :attr:`Machine.limits`.
(
    UTLBS,
    SMS,
    SMS_PER_UTLB,
    WARPS_PER_SM,
    BLOCKS_PER_SM,
    THREADS_PER_SM,
    OUTSTANDING,
    BUFFER,
    FAULT_INTERVAL,
    HIT_INTERVAL,
    ACCESS_LATENCY,
    REPLAY_LATENCY,
    REPLAY_JITTER,
    BLOCK_INTERVAL,
    ISSUE_INTERVAL,
    ISSUE_JITTER,
    LAUNCH_LATENCY,
    SEED,
) = range(18)

#: Places of :attr:`Machine.counts`.
(
    GET,
    PUT,
    KERNEL,
    NEXT_BLOCK,
    BLOCKS_LEFT,
    STARTED,
    REPLAYS,
    FIRST_FAULTS,
    SAME_UTLB,
    CROSS_UTLB,
    REFAULTS,
    OVERFLOWS,
    ACCESSES,
    HITS,
    STALLED,
) = range(15)

#: What a warp slot is at.
FREE, QUEUED, WAITING, AT_BARRIER, ENDING = range(5)

I64 = npt.NDArray[np.int64]


class Machine(NamedTuple):
    """All arrays of a GPU and of the program that it runs."""

    limits: I64
    counts: I64
    kernel_blocks: I64
    kernel_threads: I64
    kernel_residency: I64
    block_warps: I64
    warp_ops: I64
    op_pages: I64
    op_access: npt.NDArray[np.uint8]
    op_flags: npt.NDArray[np.uint8]
    pages: npt.NDArray[np.uint32]
    #: SMs in the order in which a grid's first blocks go to them.
    sm_order: I64
    #: By µTLB: when it is free, when it acts next, the warp slot that it serves or -1, whether its first
    #: access waits for room among the outstanding faults, the SM served last, and replays that reached it.
    free: I64
    next_time: I64
    serving: I64
    blocked: I64
    last_sm: I64
    replays_seen: I64
    #: By µTLB: outstanding faults, and of a retry under way the next, the end, and those kept so far.
    out_count: I64
    retry_next: I64
    retry_end: I64
    retry_kept: I64
    out_page: npt.NDArray[np.uint32]
    out_access: npt.NDArray[np.uint8]
    out_slot: I64
    out_written: npt.NDArray[np.uint8]
    #: By page: outstanding faults of all µTLBs.
    page_out: npt.NDArray[np.int32]
    #: By SM: the queue of warps that have an access to issue, by time, as a ring.
    queue: I64
    queue_head: I64
    queue_count: I64
    #: By SM: free warp slots and block slots as stacks, blocks and threads held.
    free_warps: I64
    free_warps_count: I64
    free_blocks: I64
    free_blocks_count: I64
    threads_held: I64
    #: By warp slot: its access, the end of these, the next page of it, accesses outstanding, when it may
    #: issue, when all data that is not outstanding has come, its block slot, and what it is at.
    warp_op: I64
    warp_end: I64
    warp_page: I64
    warp_pending: I64
    warp_ready: I64
    warp_data: I64
    warp_block: I64
    warp_state: I64
    #: By block slot: warps that are not done, warps at the barrier, and the time of the last of these.
    block_live: I64
    block_arrived: I64
    block_time: I64
    replay_times: I64
    #: The fault buffer, by count modulo its entries.
    fault_time: I64
    fault_page: npt.NDArray[np.uint32]
    fault_access: npt.NDArray[np.uint8]
    fault_sm: npt.NDArray[np.uint16]


def first_blocks(config: DeviceConfig) -> I64:
    """Return the order of SMs for the first blocks of a grid: one of each µTLB first, GPCs in turn."""
    utlbs = np.arange(config.utlbs)
    gpcs = utlbs * config.gpcs // config.utlbs
    within = utlbs - np.searchsorted(gpcs, gpcs)
    order = np.lexsort((gpcs, within))
    rounds = [order * config.sms_per_utlb + turn for turn in range(config.sms_per_utlb)]
    return np.concatenate(rounds).astype(np.int64)


def machine(config: DeviceConfig, program: Program, npages: int, seed: int) -> Machine:
    """Return a GPU at time 0 that holds nothing yet."""

    def zeros(*shape: int, dtype: Any = np.int64) -> Any:
        return np.zeros(shape, dtype=dtype)

    utlbs, sms, most = config.utlbs, config.sms, config.utlb_outstanding
    warps, blocks = sms * config.warps_per_sm, sms * config.blocks_per_sm
    limits = [utlbs, sms, config.sms_per_utlb, config.warps_per_sm, config.blocks_per_sm]
    limits += [config.threads_per_sm, most, config.buffer_entries, config.fault_interval_ns]
    limits += [config.hit_interval_ns, config.access_latency_ns, config.replay_latency_ns]
    limits += [config.replay_jitter_ns, config.block_interval_ns, config.issue_interval_ns]
    limits += [config.issue_jitter_ns, config.launch_latency_ns, seed]
    return Machine(
        limits=np.array(limits, dtype=np.int64),
        counts=zeros(STALLED + 1),
        kernel_blocks=program.kernel_blocks,
        kernel_threads=program.kernel_threads,
        kernel_residency=program.kernel_residency,
        block_warps=program.block_warps,
        warp_ops=program.warp_ops,
        op_pages=program.op_pages,
        op_access=program.op_access,
        op_flags=program.op_flags,
        pages=program.pages,
        sm_order=first_blocks(config),
        free=zeros(utlbs),
        next_time=np.full(utlbs, NEVER, dtype=np.int64),
        serving=np.full(utlbs, -1, dtype=np.int64),
        blocked=zeros(utlbs),
        last_sm=zeros(utlbs),
        replays_seen=zeros(utlbs),
        out_count=zeros(utlbs),
        retry_next=zeros(utlbs),
        retry_end=zeros(utlbs),
        retry_kept=zeros(utlbs),
        out_page=zeros(utlbs, most, dtype=np.uint32),
        out_access=zeros(utlbs, most, dtype=np.uint8),
        out_slot=zeros(utlbs, most),
        out_written=zeros(utlbs, most, dtype=np.uint8),
        page_out=zeros(npages, dtype=np.int32),
        queue=zeros(sms, config.warps_per_sm),
        queue_head=zeros(sms),
        queue_count=zeros(sms),
        free_warps=np.arange(warps, dtype=np.int64).reshape(sms, -1)[:, ::-1].copy(),
        free_warps_count=np.full(sms, config.warps_per_sm, dtype=np.int64),
        free_blocks=np.arange(blocks, dtype=np.int64).reshape(sms, -1)[:, ::-1].copy(),
        free_blocks_count=np.full(sms, config.blocks_per_sm, dtype=np.int64),
        threads_held=zeros(sms),
        warp_op=zeros(warps),
        warp_end=zeros(warps),
        warp_page=zeros(warps),
        warp_pending=zeros(warps),
        warp_ready=zeros(warps),
        warp_data=zeros(warps),
        warp_block=zeros(warps),
        warp_state=zeros(warps),
        block_live=zeros(blocks),
        block_arrived=zeros(blocks),
        block_time=zeros(blocks),
        replay_times=zeros(REPLAYS_UNDER_WAY),
        fault_time=zeros(config.buffer_entries),
        fault_page=zeros(config.buffer_entries, dtype=np.uint32),
        fault_access=zeros(config.buffer_entries, dtype=np.uint8),
        fault_sm=zeros(config.buffer_entries, dtype=np.uint16),
    )
