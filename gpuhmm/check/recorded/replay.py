"""Run the driver loop of a recorded call against gpuhmm's model of handle_mm_fault, and note everything.

The loop is the one of the recording: inputs are not restored between tries, -EBUSY and a true
``mmu_interval_read_retry()`` lead to the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from errno import EBUSY
from typing import Any

import numpy as np

from gpuhmm.check.recorded.call import (
    HANDLE_MM_FAULT,
    KIND_DAX,
    KIND_FILE,
    KIND_HUGETLB,
    KIND_NO_FAULT,
    KIND_VM_OPS,
    WALK_PAGE_RANGE,
    Call,
    Event,
    RecordedCall,
    RecordedVma,
)
from gpuhmm.check.recorded.facts import FACTS, Fact, no_soft_dirty
from gpuhmm.check.recorded.given import Given
from gpuhmm.hmm.backends import hmm_range_fault
from gpuhmm.hmm.ranges import HmmRange, RangeStats, WalkStep
from gpuhmm.memory.fault.model import FaultModel
from gpuhmm.memory.pages.filemap import File
from gpuhmm.memory.pages.physical import PhysicalMemory
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.entry import SOFT_DIRTY, P, is_leaf
from gpuhmm.mm.notifier import MMU_NOTIFY_MIGRATE, MmuIntervalNotifier, MmuNotifierRange
from gpuhmm.mm.tables import NO_CHILD, Words
from gpuhmm.mm.vma import Vma
from gpuhmm.mm.x86 import MAX_PFN, level_shift

#: Frames that the model hands out lie from here on, so that they are told from recorded ones.
FIRST_MODEL_PFN = 1 << 32

#: VM_SHARED mappings without any of these kinds have nothing that could fill them.
_OWNER_ARGUMENT = (0, 0xD0D0, 0x5757)


@dataclass
class Replayed:
    """What the model made of a recorded call; the fields are those of the recording."""

    mm: AddressSpace
    rc_first: int = 0
    tries: int = 0
    rc: int = 0
    calls: list[Call] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    pfn_first: Words = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    pfn_out: Words = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    facts: list[Fact] = field(default_factory=list)
    after: dict[tuple[int, int], int] = field(default_factory=dict)


class _TracedModel(FaultModel):
    """The model, with every call written down where the walks are, too."""

    def __init__(self, trace: list[Any]) -> None:
        super().__init__()
        self.trace = trace

    def handle_mm_fault(self, mm: AddressSpace, vma: Vma, va: int, flags: int) -> int:
        at = len(self.trace)
        self.trace.append(None)
        ret = super().handle_mm_fault(mm, vma, va, flags)
        self.trace[at] = Call(HANDLE_MM_FAULT, va, flags, ret)
        return ret


def replay(call: RecordedCall, backend: str, *, with_facts: bool = True) -> Replayed:
    """Return what ``backend`` and the model make of a recorded call, with or without the named facts."""
    trace: list[Any] = []
    given = build(call, trace)
    done = Replayed(given.mm)
    if with_facts:
        done.facts = [fact for fact in FACTS if fact(given)]
    _drive(call, given.mm, backend, trace, done)
    done.after = listed_entries(given.mm, call.start, call.end)
    if no_soft_dirty in done.facts:
        done.after = {
            key: entry & ~SOFT_DIRTY if entry & P and key[0] == 1 else entry
            for key, entry in done.after.items()
        }
    return done


def _drive(call: RecordedCall, mm: AddressSpace, backend: str, trace: list[Any], done: Replayed) -> None:
    def invalidate(sub: MmuIntervalNotifier, range_: MmuNotifierRange, cur_seq: int) -> bool:
        sub.set_seq(cur_seq)
        done.events.append(Event(range_.start, range_.end, range_.event, done.tries - 1))
        if range_.event == MMU_NOTIFY_MIGRATE and call.file.has_walk_returns:
            # migrate_vma_collect walks the range under this invalidation; newer recordings leave it out
            trace.append(Call(WALK_PAGE_RANGE, range_.start, range_.end, 0))
        return True

    notifier = mm.notifier(call.start, call.end, invalidate)
    words = call.words("in").copy()
    stats = RangeStats(trace=trace)
    # A recording without a limit ended by itself: one try more is a difference already.
    limited = "max_tries" in call.file.arrays
    most = call.number("max_tries") if limited else call.number("tries") + 1
    while True:
        done.tries += 1
        range_ = HmmRange(
            notifier,
            call.start,
            call.end,
            words,
            notifier_seq=notifier.read_begin(),
            default_flags=call.number("default_flags"),
            pfn_flags_mask=call.number("pfn_flags_mask"),
            dev_private_owner=_OWNER_ARGUMENT[call.number("owner_mode")],
            stats=stats,
        )
        done.rc = hmm_range_fault(range_, backend=backend)
        if done.tries == 1:
            done.rc_first = done.rc
            done.pfn_first = words.copy()
        again = done.rc == -EBUSY or (done.rc == 0 and notifier.read_retry(range_.notifier_seq))
        if not again or done.tries >= most:
            break
    done.pfn_out = words
    done.calls = [
        Call(WALK_PAGE_RANGE, step.start, step.end, step.ret) if isinstance(step, WalkStep) else step
        for step in trace
    ]


def build(call: RecordedCall, trace: list[Any]) -> Given:
    """Return the space before the call, made of what the recording shows of that time and nothing else."""
    memory = PhysicalMemory()
    memory.reserve(0, FIRST_MODEL_PFN)
    files: dict[tuple[int, int], File] = {}
    mm = AddressSpace(
        levels=call.levels,
        root_pfn=call.root_pfn,
        vmas=[_vma(memory, vma, files) for vma in call.vmas],
        kernel=call.kernel,
        zero_pfn=call.number("zero_pfn"),
        huge_zero_pfn=call.number("huge_zero_pfn"),
        highest_memmap_pfn=MAX_PFN - 1,
        shstk=call.file.shstk(call.index),
        faults=_TracedModel(trace),
        memory=memory,
    )
    _store_tables(call, mm)
    return Given(call, mm)


def _vma(memory: PhysicalMemory, vma: RecordedVma, files: dict[tuple[int, int], File]) -> Vma:
    shift = vma.order + 12 if vma.order else 12
    kind = _file_kind(vma)
    file = None
    pgoff = vma.pgoff
    if kind is not None:
        # Areas of one file that follow one another have the same distance to it.
        key = (vma.start - (vma.pgoff << 12), vma.kind & ~64)
        file = files.get(key)
        size = (vma.pgoff << 12) + vma.end - vma.start
        if file is None or file.size < size:
            file = files[key] = File(memory, size, kind, huge=bool(vma.kind & KIND_DAX))
    return Vma(vma.start, vma.end, vma.flags, shift, file, pgoff, vma.page_prot)


def _file_kind(vma: RecordedVma) -> str | None:
    """Return what kind of file an area maps, as far as the area tells: None for anonymous memory."""
    if not vma.kind & (KIND_FILE | KIND_VM_OPS):
        return None
    if not vma.kind & KIND_VM_OPS:
        return "zero"
    if vma.kind & KIND_HUGETLB:
        return "hugetlb"
    if vma.kind & KIND_DAX:
        return "dax"
    if vma.kind & KIND_NO_FAULT:
        return "secretmem"
    return "shmem"


def _store_tables(call: RecordedCall, mm: AddressSpace) -> None:
    level, va, value = call.table_rows("before")
    for upper in range(call.levels, 1, -1):
        rows = level == upper
        for at, entry in zip(va[rows].tolist(), value[rows].tolist(), strict=True):
            if entry:
                mm.page_tables.set_entry(at, upper, entry)
    leaves = level == 1
    va, value = va[leaves], value[leaves]
    if not len(va):
        return
    borders = np.flatnonzero(np.diff(va >> np.uint64(21))) + 1
    for first, past in zip([0, *borders.tolist()], [*borders.tolist(), len(va)], strict=True):
        at = int(va[first])
        mm.page_tables.store(1, mm.page_tables.row(at, 1), at >> 12 & 511, value[first:past])


def listed_entries(mm: AddressSpace, start: int, end: int) -> dict[tuple[int, int], int]:
    """Return the entries over ``[start, end)`` as recordings list them.

    Every entry of every table that covers the range; nothing below an entry without a table.
    """
    found: dict[tuple[int, int], int] = {}
    _list_level(mm, mm.levels, start, end, found)
    return found


def _list_level(
    mm: AddressSpace, level: int, start: int, end: int, found: dict[tuple[int, int], int]
) -> None:
    shift = level_shift(level)
    row = mm.page_tables.row(start, level)
    if row == NO_CHILD:
        return
    if level == 1:
        first, count = start >> 12 & 511, (end - start + 4095) >> 12
        for i, entry in enumerate(mm.page_tables.leaf[row, first : first + count].tolist()):
            found[1, start + (i << 12)] = entry
        return
    va = start
    while va < end:
        past = min(((va >> shift) + 1) << shift, end)
        entry = mm.entry(va, level)
        found[level, va >> shift << shift] = entry
        if entry and not is_leaf(entry, level, mm.kernel.huge_bits):
            _list_level(mm, level - 1, va, past, found)
        va = past
