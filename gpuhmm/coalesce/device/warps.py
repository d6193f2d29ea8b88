"""Blocks and warps of a modelled GPU: who is handed out, who waits, who issues next.  Compiled."""

from __future__ import annotations

import numpy as np
from numba import njit

from gpuhmm.coalesce.device.config import WARP_LANES
from gpuhmm.coalesce.device.machine import (
    AT_BARRIER,
    BLOCK_INTERVAL,
    BLOCKS_LEFT,
    BLOCKS_PER_SM,
    ENDING,
    FREE,
    ISSUE_JITTER,
    KERNEL,
    LAUNCH_LATENCY,
    NEXT_BLOCK,
    QUEUED,
    SEED,
    STARTED,
    THREADS_PER_SM,
    WAITING,
    WARPS_PER_SM,
)
from gpuhmm.coalesce.device.program import OP_BARRIER, OP_WAITS

_OP_WAITS = np.uint8(OP_WAITS)
_OP_BARRIER = np.uint8(OP_BARRIER)


@njit(inline="never")
def chance(seed, first, second, below):
    """Return a number within ``[0, below]`` that follows from the three others (SplitMix64)."""
    if below == 0:
        return 0
    word = np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
    word ^= np.uint64(first) * np.uint64(0xBF58476D1CE4E5B9)
    word += np.uint64(second) * np.uint64(0x94D049BB133111EB) + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    return np.int64(word % np.uint64(below + 1))


@njit
def enqueue(m, slot, time):
    """Put a warp into the queue of its SM, behind those that may issue at that time or earlier."""
    sm = slot // m.limits[WARPS_PER_SM]
    size = m.limits[WARPS_PER_SM]
    time += chance(m.limits[SEED], slot, m.warp_op[slot], m.limits[ISSUE_JITTER])
    m.warp_ready[slot] = time
    m.warp_state[slot] = QUEUED
    at = m.queue_head[sm] + m.queue_count[sm]
    while at > m.queue_head[sm]:
        before = m.queue[sm, (at - 1) % size]
        if m.warp_ready[before] <= time:
            break
        m.queue[sm, at % size] = before
        at -= 1
    m.queue[sm, at % size] = slot
    m.queue_count[sm] += 1


@njit
def dequeue(m, sm):
    """Take the first warp out of the queue of an SM."""
    slot = m.queue[sm, m.queue_head[sm]]
    m.queue_head[sm] = (m.queue_head[sm] + 1) % m.limits[WARPS_PER_SM]
    m.queue_count[sm] -= 1
    return slot


@njit
def release(m, block):
    """Let the warps of a block pass its barrier if all that are left came to it."""
    if m.block_arrived[block] == 0 or m.block_arrived[block] < m.block_live[block]:
        return
    m.block_arrived[block] = 0
    first = block // m.limits[BLOCKS_PER_SM] * m.limits[WARPS_PER_SM]
    for slot in range(first, first + m.limits[WARPS_PER_SM]):
        if m.warp_state[slot] == AT_BARRIER and m.warp_block[slot] == block:
            enqueue(m, slot, m.block_time[block])


@njit
def reach(m, slot, time):
    """A warp that has an access left comes to it: it issues, or waits for what that needs."""
    flags = m.op_flags[m.warp_op[slot]]
    if flags != 0 and m.warp_pending[slot] > 0:
        m.warp_state[slot] = WAITING
    elif flags & _OP_BARRIER:
        block = m.warp_block[slot]
        m.warp_state[slot] = AT_BARRIER
        m.block_arrived[block] += 1
        m.block_time[block] = max(m.block_time[block], time, m.warp_data[slot])
        release(m, block)
    elif flags & _OP_WAITS:
        enqueue(m, slot, max(time, m.warp_data[slot]))
    else:
        enqueue(m, slot, time)


@njit
def place(m, sm, time):
    """Give the next blocks of the kernel to an SM that may have room; return how many, at most one.

    Blocks in which no warp has an access are done at once and take no room.
    """
    kernel = m.counts[KERNEL]
    threads = m.kernel_threads[kernel]
    held = m.limits[BLOCKS_PER_SM] - m.free_blocks_count[sm]
    most = m.kernel_residency[kernel]
    while m.counts[NEXT_BLOCK] < m.kernel_blocks[kernel + 1]:
        number = m.counts[NEXT_BLOCK]
        live = 0
        for warp in range(m.block_warps[number], m.block_warps[number + 1]):
            live += m.warp_ops[warp] < m.warp_ops[warp + 1]
        if live == 0:
            m.counts[NEXT_BLOCK] += 1
            m.counts[BLOCKS_LEFT] -= 1
            continue
        warps = (threads + WARP_LANES - 1) // WARP_LANES
        if (
            m.free_blocks_count[sm] == 0
            or m.threads_held[sm] + warps * WARP_LANES > m.limits[THREADS_PER_SM]
            or m.free_warps_count[sm] < warps
            or (most > 0 and held >= most)
        ):
            return 0
        m.counts[NEXT_BLOCK] += 1
        m.threads_held[sm] += warps * WARP_LANES
        m.free_blocks_count[sm] -= 1
        block = m.free_blocks[sm, m.free_blocks_count[sm]]
        m.block_live[block] = live
        m.block_arrived[block] = 0
        m.block_time[block] = time
        for warp in range(m.block_warps[number], m.block_warps[number + 1]):
            if m.warp_ops[warp] < m.warp_ops[warp + 1]:
                m.free_warps_count[sm] -= 1
                slot = m.free_warps[sm, m.free_warps_count[sm]]
                m.warp_op[slot] = m.warp_ops[warp]
                m.warp_end[slot] = m.warp_ops[warp + 1]
                m.warp_page[slot] = m.op_pages[m.warp_ops[warp]]
                m.warp_pending[slot] = 0
                m.warp_data[slot] = time
                m.warp_block[slot] = block
                reach(m, slot, time)
        return 1
    return 0


@njit
def start(m, time):
    """Hand out the first blocks of the kernel, and of later ones while kernels have nothing to do."""
    while m.counts[KERNEL] < len(m.kernel_threads):
        kernel = m.counts[KERNEL]
        m.counts[BLOCKS_LEFT] = m.kernel_blocks[kernel + 1] - m.kernel_blocks[kernel]
        placed = 1
        while placed > 0:
            placed = 0
            for sm in m.sm_order:
                if place(m, sm, time) > 0:
                    placed += 1
                    time += m.limits[BLOCK_INTERVAL]
        if m.counts[BLOCKS_LEFT] > 0:
            break
        m.counts[KERNEL] += 1
    m.counts[STARTED] = 1


@njit
def finish(m, slot, time):
    """A warp is done: its block may be, another block may come, and another kernel."""
    block = m.warp_block[slot]
    sm = slot // m.limits[WARPS_PER_SM]
    m.warp_state[slot] = FREE
    m.free_warps[sm, m.free_warps_count[sm]] = slot
    m.free_warps_count[sm] += 1
    m.block_time[block] = max(m.block_time[block], time)
    m.block_live[block] -= 1
    if m.block_live[block] > 0:
        release(m, block)
        return
    time = m.block_time[block]
    threads = m.kernel_threads[m.counts[KERNEL]]
    m.threads_held[sm] -= (threads + WARP_LANES - 1) // WARP_LANES * WARP_LANES
    m.free_blocks[sm, m.free_blocks_count[sm]] = block
    m.free_blocks_count[sm] += 1
    m.counts[BLOCKS_LEFT] -= 1
    place(m, sm, time + m.limits[BLOCK_INTERVAL])
    if m.counts[BLOCKS_LEFT] == 0:
        m.counts[KERNEL] += 1
        start(m, time + m.limits[LAUNCH_LATENCY])


@njit
def go_on(m, slot, time):
    """A warp's access is issued, or its last outstanding one came: what it does next."""
    if m.warp_op[slot] < m.warp_end[slot]:
        reach(m, slot, time)
    elif m.warp_pending[slot] > 0:
        m.warp_state[slot] = ENDING
    else:
        finish(m, slot, max(time, m.warp_data[slot]))
