"""The rules of the modelled GPU, stepped one access at a time with plain objects: slow, and on its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuhmm.coalesce.access import ACCESS_NEEDS

NEVER = 1 << 62
MASK = (1 << 64) - 1


def chance(seed: int, first: int, second: int, below: int) -> int:
    """SplitMix64 of three numbers, within [0, below]."""
    if below == 0:
        return 0
    word = (seed * 0x9E3779B97F4A7C15) & MASK
    word ^= (first * 0xBF58476D1CE4E5B9) & MASK
    word = (word + second * 0x94D049BB133111EB + 0x9E3779B97F4A7C15) & MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    word ^= word >> 31
    return word % (below + 1)


@dataclass(eq=False)
class Warp:
    slot: int
    block: Any
    ops: list[tuple[int, int, int, list[int]]]  # number, access, flags, pages
    at: int = 0
    page: int = 0
    pending: int = 0
    data: int = 0
    ready: int = 0
    state: str = "new"


@dataclass(eq=False)
class Block:
    sm: int
    slot: int
    live: int
    kernel: int
    arrived: list[Warp] = field(default_factory=list)
    time: int = 0


@dataclass(eq=False)
class Miss:
    page: int
    access: int
    warp: Warp
    written: bool


@dataclass(eq=False)
class Utlb:
    number: int
    skew: int
    free: int = 0
    serving: Warp | None = None
    blocked: bool = False
    last_sm: int = 0
    seen: int = 0
    out: list[Miss] = field(default_factory=list)
    again: list[Miss] | None = None
    turn: int = NEVER


class ReferenceGpu:
    """Counts and entries as the compiled device has them: ``log`` is (time, page, access, sm)."""

    def __init__(self, config: Any, program: Any, npages: int, seed: int, skews: list[int]) -> None:
        self.c, self.p, self.seed = config, program, seed
        self.entries = np.zeros(npages, dtype=np.uint64)
        self.log: list[tuple[int, int, int, int]] = []
        self.get = 0
        self.same = self.cross = self.refaults = self.overflows = self.accesses = self.hits = 0
        self.most = 0
        self.gmmu_free = 0
        self.prefetches = True
        self.replays: list[int] = []
        self.utlbs = [Utlb(number, skews[number]) for number in range(config.utlbs)]
        self.queues: list[list[Warp]] = [[] for _ in range(config.sms)]
        self.warp_slots = [
            [sm * config.warps_per_sm + i for i in reversed(range(config.warps_per_sm))]
            for sm in range(config.sms)
        ]
        self.held = [0] * config.sms
        self.threads = [0] * config.sms
        self.kernel = self.next_block = self.left = 0
        gpc = [u * config.gpcs // config.utlbs for u in range(config.utlbs)]
        within = [u - gpc.index(gpc[u]) for u in range(config.utlbs)]
        order = sorted(range(config.utlbs), key=lambda u: (within[u], gpc[u]))
        each = config.sms // config.utlbs
        self.order = [u * each + turn for turn in range(each) for u in order]
        self.start(0)

    # -- blocks and warps ---------------------------------------------------------------------

    def start(self, time: int) -> None:
        while self.kernel < self.p.kernels:
            first, past = self.p.kernel_blocks[self.kernel : self.kernel + 2].tolist()
            self.left = past - first
            placed = True
            while placed:
                placed = False
                for sm in self.order:
                    if self.place(sm, time):
                        placed = True
                        time += self.c.block_interval_ns
            if self.left:
                return
            self.kernel += 1

    def ops(self, warp: int) -> list[tuple[int, int, int, list[int]]]:
        p = self.p
        return [
            (
                op,
                int(p.op_access[op]),
                int(p.op_flags[op]),
                p.pages[p.op_pages[op] : p.op_pages[op + 1]].tolist(),
            )
            for op in range(p.warp_ops[warp], p.warp_ops[warp + 1])
        ]

    def place(self, sm: int, time: int) -> bool:
        p, c = self.p, self.c
        while self.next_block < p.kernel_blocks[self.kernel + 1]:
            number = self.next_block
            warps = [self.ops(w) for w in range(p.block_warps[number], p.block_warps[number + 1])]
            warps = [ops for ops in warps if ops]
            if not warps:
                self.next_block += 1
                self.left -= 1
                continue
            size = -(-int(p.kernel_threads[self.kernel]) // 32)
            residency = int(p.kernel_residency[self.kernel]) or c.blocks_per_sm
            if (
                self.held[sm] >= min(c.blocks_per_sm, residency)
                or self.threads[sm] + size * 32 > c.threads_per_sm
                or len(self.warp_slots[sm]) < size
            ):
                return False
            self.next_block += 1
            self.held[sm] += 1
            self.threads[sm] += size * 32
            block = Block(sm, 0, len(warps), self.kernel, time=time)
            for ops in warps:
                self.reach(Warp(self.warp_slots[sm].pop(), block, ops, data=time), time)
            return True
        return False

    def enqueue(self, warp: Warp, time: int) -> None:
        warp.ready = time + chance(self.seed, warp.slot, warp.ops[warp.at][0], self.c.issue_jitter_ns)
        warp.state = "queued"
        queue = self.queues[warp.block.sm]
        at = len(queue)
        while at and queue[at - 1].ready > warp.ready:
            at -= 1
        queue.insert(at, warp)

    def release(self, block: Block) -> None:
        if block.arrived and len(block.arrived) == block.live:
            come, block.arrived = sorted(block.arrived, key=lambda warp: warp.slot), []
            for warp in come:
                self.enqueue(warp, block.time)

    def reach(self, warp: Warp, time: int) -> None:
        flags = warp.ops[warp.at][2]
        if flags and warp.pending:
            warp.state = "waiting"
        elif flags & 2:
            warp.block.arrived.append(warp)
            warp.block.time = max(warp.block.time, time, warp.data)
            warp.state = "barrier"
            self.release(warp.block)
        else:
            self.enqueue(warp, max(time, warp.data) if flags else time)

    def go_on(self, warp: Warp, time: int) -> None:
        if warp.at < len(warp.ops):
            self.reach(warp, time)
        elif warp.pending:
            warp.state = "waiting"
        else:
            self.finish(warp, max(time, warp.data))

    def finish(self, warp: Warp, time: int) -> None:
        block = warp.block
        self.warp_slots[block.sm].append(warp.slot)
        block.time = max(block.time, time)
        block.live -= 1
        if block.live:
            self.release(block)
            return
        self.threads[block.sm] -= -(-int(self.p.kernel_threads[block.kernel]) // 32) * 32
        self.held[block.sm] -= 1
        self.left -= 1
        self.place(block.sm, block.time + self.c.block_interval_ns)
        if not self.left:
            self.kernel += 1
            self.start(block.time + self.c.launch_latency_ns)

    # -- µTLBs --------------------------------------------------------------------------------

    def found(self, page: int, access: int) -> bool:
        needs = ACCESS_NEEDS[access]
        return int(self.entries[page]) & needs == needs

    def write(self, page: int, access: int, warp: Warp, time: int) -> bool:
        if len(self.log) - self.get >= self.c.buffer_entries:
            self.overflows += 1
            return False
        self.log.append((time, page, access, warp.block.sm))
        return True

    def arrival(self, utlb: Utlb) -> int:
        if utlb.seen == len(self.replays):
            return NEVER
        late = chance(self.seed, (1 << 40) + utlb.number, utlb.seen, self.c.replay_jitter_ns)
        return self.replays[utlb.seen] + self.c.replay_latency_ns + utlb.skew + late

    def sms(self, utlb: Utlb) -> range:
        each = self.c.sms // self.c.utlbs
        return range(utlb.number * each, (utlb.number + 1) * each)

    def next_time(self, utlb: Utlb) -> int:
        time = NEVER
        if utlb.again is not None:
            time = utlb.free
        elif not utlb.blocked:
            if utlb.serving:
                time = utlb.free
            else:
                heads = [self.queues[sm][0].ready for sm in self.sms(utlb) if self.queues[sm]]
                time = max(utlb.free, min(heads)) if heads else NEVER
        return min(time, self.arrival(utlb))

    def step(self, utlb: Utlb, time: int) -> None:
        if self.arrival(utlb) <= time:
            utlb.seen += 1
            utlb.again = [*utlb.out, *(utlb.again or [])]
            utlb.out = []
            utlb.free = max(utlb.free, time)
            if not utlb.again:
                utlb.again = None
        elif utlb.again is not None:
            self.try_again(utlb, time)
        else:
            self.serve(utlb, time)
        self.most = max(self.most, len(utlb.out) + len(utlb.again or []))

    def is_taken(self, utlb: Utlb, time: int) -> bool:
        """The GMMU takes one miss an interval, in the order in which µTLBs come with them."""
        if utlb.turn > time:
            utlb.turn = max(time, self.gmmu_free)
            self.gmmu_free = utlb.turn + self.c.fault_interval_ns
            utlb.free = utlb.turn
        if utlb.turn > time:
            return False
        utlb.turn = NEVER
        return True

    def try_again(self, utlb: Utlb, time: int) -> None:
        hit = self.found(utlb.again[0].page, utlb.again[0].access)
        if not hit and not self.is_taken(utlb, time):
            return
        utlb.turn = NEVER
        miss = utlb.again.pop(0)
        if hit:
            miss.warp.pending -= 1
            miss.warp.data = max(miss.warp.data, time + self.c.access_latency_ns)
            utlb.free = time + self.c.hit_interval_ns
            if miss.warp.pending == 0 and miss.warp.state == "waiting":
                self.go_on(miss.warp, time)
        else:
            if self.write(miss.page, miss.access, miss.warp, time):
                self.refaults += miss.written
                miss.written = True
            utlb.out.append(miss)
            utlb.free = time + self.c.hit_interval_ns
        if not utlb.again:
            utlb.again = None
            utlb.blocked = False

    def serve(self, utlb: Utlb, time: int) -> None:
        if utlb.serving is None:
            best = None
            sms = self.sms(utlb)
            for turn in range(1, len(sms) + 1):
                sm = sms[(utlb.last_sm + turn) % len(sms)]
                if self.queues[sm]:
                    ready = max(utlb.free, self.queues[sm][0].ready)
                    if best is None or ready < best[0]:
                        best = (ready, sm)
            utlb.last_sm = best[1] - sms[0]
            utlb.serving = self.queues[best[1]].pop(0)
        warp = utlb.serving
        _, access, _, pages = warp.ops[warp.at]
        utlb.free = time
        if warp.page < len(pages):
            page = pages[warp.page]
            if self.found(page, access):
                self.hits += 1
                utlb.turn = NEVER
                utlb.free += self.c.hit_interval_ns
                if access:
                    warp.data = max(warp.data, utlb.free + self.c.access_latency_ns)
            elif not access and not self.prefetches:
                utlb.free += self.c.hit_interval_ns
            elif access and len(utlb.out) == self.c.utlb_outstanding:
                utlb.blocked = True
                return
            elif not self.is_taken(utlb, time):
                return
            elif not access:
                self.write(page, access, warp, time)
                utlb.free = time + self.c.hit_interval_ns
            else:
                if any(miss.page == page for miss in utlb.out):
                    self.same += 1
                elif any(m.page == page for u in self.utlbs for m in [*u.out, *(u.again or [])]):
                    self.cross += 1
                utlb.out.append(Miss(page, access, warp, self.write(page, access, warp, time)))
                warp.pending += 1
                utlb.free = time + self.c.hit_interval_ns
            self.accesses += 1
            warp.page += 1
        if warp.page == len(pages):
            utlb.serving = None
            warp.at += 1
            warp.page = 0
            self.go_on(warp, utlb.free + self.c.issue_interval_ns)

    # -- what a driver does -------------------------------------------------------------------

    def run(self, limit: int, until_fault: bool = False) -> None:
        while not (until_fault and len(self.log) > self.get):
            times = [self.next_time(utlb) for utlb in self.utlbs]
            first = min(times)
            if first == NEVER or first > limit:
                return
            self.step(self.utlbs[times.index(first)], first)

    def replay(self, now: int) -> None:
        self.run(now)
        self.replays.append(now)

    def done(self) -> bool:
        return self.kernel == self.p.kernels
