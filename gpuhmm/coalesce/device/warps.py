"""Blocks and warps of a modelled GPU: who is handed out, who waits, who issues next.  Compiled."""

from __future__ import annotations

import numpy as np
from numba import njit

from gpuhmm.coalesce.device.config import WARP_LANES
from gpuhmm.coalesce.device.machine import (
    AT_BARRIER,
    B_ARRIVED,
    B_LIVE,
    B_TIME,
    BLOCK_INTERVAL,
    BLOCKS_LEFT,
    BLOCKS_PER_SM,
    ENDING,
    FREE,
    FREE_BLOCKS,
    FREE_WARPS,
    ISSUE_JITTER,
    K_BLOCKS,
    K_RESIDENCY,
    K_THREADS,
    KERNEL,
    LAUNCH_LATENCY,
    NEXT_BLOCK,
    OP_FLAGS,
    QUEUE,
    QUEUED,
    S_FREE_BLOCKS_COUNT,
    S_FREE_WARPS_COUNT,
    S_QUEUE_COUNT,
    S_QUEUE_HEAD,
    S_THREADS_HELD,
    SEED,
    STARTED,
    THREADS_PER_SM,
    W_BLOCK,
    W_DATA,
    W_END,
    W_OP,
    W_PAGE,
    W_PENDING,
    W_READY,
    W_STATE,
    WAITING,
    WARPS_PER_SM,
)
from gpuhmm.coalesce.device.program import OP_BARRIER, OP_WAITS


@njit(_nrt=False)
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


@njit(_nrt=False)
def enqueue(m, slot, time):
    """Put a warp into the queue of its SM, behind those that may issue at that time or earlier."""
    sm = slot // m.device[WARPS_PER_SM]
    size = m.device[WARPS_PER_SM]
    time += chance(m.device[SEED], slot, m.warp[slot, W_OP], m.device[ISSUE_JITTER])
    m.warp[slot, W_READY] = time
    m.warp[slot, W_STATE] = QUEUED
    at = m.sm[sm, S_QUEUE_HEAD] + m.sm[sm, S_QUEUE_COUNT]
    while at > m.sm[sm, S_QUEUE_HEAD]:
        before = m.slots[sm, QUEUE, (at - 1) % size]
        if m.warp[before, W_READY] <= time:
            break
        m.slots[sm, QUEUE, at % size] = before
        at -= 1
    m.slots[sm, QUEUE, at % size] = slot
    m.sm[sm, S_QUEUE_COUNT] += 1


@njit(_nrt=False)
def dequeue(m, sm):
    """Take the first warp out of the queue of an SM."""
    slot = m.slots[sm, QUEUE, m.sm[sm, S_QUEUE_HEAD]]
    m.sm[sm, S_QUEUE_HEAD] = (m.sm[sm, S_QUEUE_HEAD] + 1) % m.device[WARPS_PER_SM]
    m.sm[sm, S_QUEUE_COUNT] -= 1
    return slot


@njit(_nrt=False)
def release(m, block):
    """Let the warps of a block pass its barrier if all that are left came to it."""
    if m.block[block, B_ARRIVED] == 0 or m.block[block, B_ARRIVED] < m.block[block, B_LIVE]:
        return
    m.block[block, B_ARRIVED] = 0
    first = block // m.device[BLOCKS_PER_SM] * m.device[WARPS_PER_SM]
    for slot in range(first, first + m.device[WARPS_PER_SM]):
        if m.warp[slot, W_STATE] == AT_BARRIER and m.warp[slot, W_BLOCK] == block:
            enqueue(m, slot, m.block[block, B_TIME])


@njit(_nrt=False)
def reach(m, slot, time):
    """A warp that has an access left comes to it: it issues, or waits for what that needs."""
    flags = m.op_kind[m.warp[slot, W_OP]] >> OP_FLAGS
    if flags != 0 and m.warp[slot, W_PENDING] > 0:
        m.warp[slot, W_STATE] = WAITING
    elif flags & OP_BARRIER:
        block = m.warp[slot, W_BLOCK]
        m.warp[slot, W_STATE] = AT_BARRIER
        m.block[block, B_ARRIVED] += 1
        m.block[block, B_TIME] = max(m.block[block, B_TIME], time, m.warp[slot, W_DATA])
        release(m, block)
    elif flags & OP_WAITS:
        enqueue(m, slot, max(time, m.warp[slot, W_DATA]))
    else:
        enqueue(m, slot, time)


@njit(_nrt=False)
def place(m, sm, time):
    """Give the next blocks of the kernel to an SM that may have room; return how many, at most one.

    Blocks in which no warp has an access are done at once and take no room.
    """
    kernel = m.device[KERNEL]
    threads = m.kernels[kernel, K_THREADS]
    held = m.device[BLOCKS_PER_SM] - m.sm[sm, S_FREE_BLOCKS_COUNT]
    most = m.kernels[kernel, K_RESIDENCY]
    while m.device[NEXT_BLOCK] < m.kernels[kernel + 1, K_BLOCKS]:
        number = m.device[NEXT_BLOCK]
        live = 0
        for warp in range(m.block_warps[number], m.block_warps[number + 1]):
            live += m.warp_ops[warp] < m.warp_ops[warp + 1]
        if live == 0:
            m.device[NEXT_BLOCK] += 1
            m.device[BLOCKS_LEFT] -= 1
            continue
        warps = (threads + WARP_LANES - 1) // WARP_LANES
        if (
            m.sm[sm, S_FREE_BLOCKS_COUNT] == 0
            or m.sm[sm, S_THREADS_HELD] + warps * WARP_LANES > m.device[THREADS_PER_SM]
            or m.sm[sm, S_FREE_WARPS_COUNT] < warps
            or (most > 0 and held >= most)
        ):
            return 0
        m.device[NEXT_BLOCK] += 1
        m.sm[sm, S_THREADS_HELD] += warps * WARP_LANES
        m.sm[sm, S_FREE_BLOCKS_COUNT] -= 1
        block = m.slots[sm, FREE_BLOCKS, m.sm[sm, S_FREE_BLOCKS_COUNT]]
        m.block[block, B_LIVE] = live
        m.block[block, B_ARRIVED] = 0
        m.block[block, B_TIME] = time
        for warp in range(m.block_warps[number], m.block_warps[number + 1]):
            if m.warp_ops[warp] < m.warp_ops[warp + 1]:
                m.sm[sm, S_FREE_WARPS_COUNT] -= 1
                slot = m.slots[sm, FREE_WARPS, m.sm[sm, S_FREE_WARPS_COUNT]]
                m.warp[slot, W_OP] = m.warp_ops[warp]
                m.warp[slot, W_END] = m.warp_ops[warp + 1]
                m.warp[slot, W_PAGE] = m.op_pages[m.warp_ops[warp]]
                m.warp[slot, W_PENDING] = 0
                m.warp[slot, W_DATA] = time
                m.warp[slot, W_BLOCK] = block
                reach(m, slot, time)
        return 1
    return 0


@njit(_nrt=False)
def start(m, time):
    """Hand out the first blocks of the kernel, and of later ones while kernels have nothing to do."""
    while m.device[KERNEL] < len(m.kernels) - 1:
        kernel = m.device[KERNEL]
        m.device[BLOCKS_LEFT] = m.kernels[kernel + 1, K_BLOCKS] - m.kernels[kernel, K_BLOCKS]
        placed = 1
        while placed > 0:
            placed = 0
            for sm in m.sm_order:
                if place(m, sm, time) > 0:
                    placed += 1
                    time += m.device[BLOCK_INTERVAL]
        if m.device[BLOCKS_LEFT] > 0:
            break
        m.device[KERNEL] += 1
    m.device[STARTED] = 1


@njit(_nrt=False)
def finish(m, slot, time):
    """A warp is done: its block may be, another block may come, and another kernel."""
    block = m.warp[slot, W_BLOCK]
    sm = slot // m.device[WARPS_PER_SM]
    m.warp[slot, W_STATE] = FREE
    m.slots[sm, FREE_WARPS, m.sm[sm, S_FREE_WARPS_COUNT]] = slot
    m.sm[sm, S_FREE_WARPS_COUNT] += 1
    m.block[block, B_TIME] = max(m.block[block, B_TIME], time)
    m.block[block, B_LIVE] -= 1
    if m.block[block, B_LIVE] > 0:
        release(m, block)
        return
    time = m.block[block, B_TIME]
    threads = m.kernels[m.device[KERNEL], K_THREADS]
    m.sm[sm, S_THREADS_HELD] -= (threads + WARP_LANES - 1) // WARP_LANES * WARP_LANES
    m.slots[sm, FREE_BLOCKS, m.sm[sm, S_FREE_BLOCKS_COUNT]] = block
    m.sm[sm, S_FREE_BLOCKS_COUNT] += 1
    m.device[BLOCKS_LEFT] -= 1
    place(m, sm, time + m.device[BLOCK_INTERVAL])
    if m.device[BLOCKS_LEFT] == 0:
        m.device[KERNEL] += 1
        start(m, time + m.device[LAUNCH_LATENCY])


@njit(_nrt=False)
def go_on(m, slot, time):
    """A warp's access is issued, or its last outstanding one came: what it does next."""
    if m.warp[slot, W_OP] < m.warp[slot, W_END]:
        reach(m, slot, time)
    elif m.warp[slot, W_PENDING] > 0:
        m.warp[slot, W_STATE] = ENDING
    else:
        finish(m, slot, max(time, m.warp[slot, W_DATA]))
