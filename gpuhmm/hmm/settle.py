"""Settling a walk on the host: what a batch back end leaves to be done in order.

A resolver writes the words below the first page that stops the walk; the host then does there what
the kernel does, and goes on.  Pages at and above a stop keep their input words.

From v7.3 on the kernel does it this way as well: it faults when the walk has returned.

Source: mm/hmm.c:hmm_range_fault, hmm_vma_fault (v5.18), hmm_do_fault (v7.3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from errno import EBUSY, EFAULT, EINVAL, ENOMEM, EPERM
from typing import NamedTuple, Protocol

from gpuhmm.hmm.livelock import LivelockGuard
from gpuhmm.hmm.ranges import HmmRange
from gpuhmm.hmm.runs import HmmRuns
from gpuhmm.hmm.walk.pte import (
    ACTION_CLEAR,
    ACTION_FAULT,
    ACTION_MISSING,
    ACTION_SPLIT,
    ACTION_WAIT_PMD,
    ACTION_WAIT_PTE,
)
from gpuhmm.hmm.words import HMM_NEED_WRITE_FAULT
from gpuhmm.mm.handler import (
    FAULT_FLAG_WRITE,
    VM_FAULT_COMPLETED,
    VM_FAULT_ERROR,
    VM_FAULT_FALLBACK,
    VM_FAULT_OOM,
    VM_FAULT_RETRY,
    BurstHandler,
    FaultHandler,
)
from gpuhmm.mm.vma import VM_WRITE

#: Pages that are resolved at once after a stop; doubled with every wave in which nothing stops.
FIRST_WAVE_AFTER_STOP = 1024

#: The handler gave the mmap lock up: what was walked is void.
_DROPPED = VM_FAULT_RETRY | VM_FAULT_COMPLETED

#: What a fault that gave the mmap lock up returns: the call is over with -EBUSY.
_UNLOCKED = 1

_FAULT = int(ACTION_FAULT)
_WAIT_PTE = int(ACTION_WAIT_PTE)
_WAIT_PMD = int(ACTION_WAIT_PMD)
_SPLIT = int(ACTION_SPLIT)
_CLEAR = int(ACTION_CLEAR)
_MISSING = int(ACTION_MISSING)


class Stop(NamedTuple):
    """Where a walk stopped, and why: see :func:`gpuhmm.hmm.walk.span.describe_stop`."""

    va: int
    action: int
    need: int
    end: int
    vma: int
    level: int


class Resolver(Protocol):
    """What a batch back end does for :func:`settle`."""

    #: Pages of the first wave, and the most of any.
    first_wave: int
    max_wave: int

    def wave_end(self, va: int) -> int:
        """Return ``va``, or the end of the extent around it whose need is an OR over all of its pages."""
        ...

    def resolve(self, first: int, past: int) -> Stop | None:
        """Write the words of ``[first, past)`` bytes below the first stop, and return the stop."""
        ...

    def finish(self, past: int) -> None:
        """Leave the outputs below ``past`` where the caller expects them; all others stay inputs."""
        ...


class SequentialWalk(ABC):
    """What the reference gives instead: a walk that faults by itself, as the kernel's does."""

    @abstractmethod
    def hmm_range_fault(self) -> int:
        """Walk the whole range; return 0 or a negative errno."""


def settle(range_: HmmRange | HmmRuns, resolver: Resolver | SequentialWalk) -> int:
    """Return 0 or a negative errno, with everything done as ``hmm_range_fault()`` does it in order."""
    if isinstance(resolver, SequentialWalk):
        return resolver.hmm_range_fault()
    return _Settlement(range_, resolver).run()


class _Settlement:
    def __init__(self, range_: HmmRange | HmmRuns, resolver: Resolver) -> None:
        self.range = range_
        self.mm = range_.notifier.mm
        self.resolver = resolver
        self.last = range_.start
        self.wave = resolver.first_wave

    def run(self) -> int:
        with self.mm.mmap_lock.read():
            try:
                return self.restart_until_done()
            finally:
                self.resolver.finish(self.last)

    def restart_until_done(self) -> int:
        guard = LivelockGuard(self.mm)
        while True:
            self.range.stats.walks += 1
            if self.range.notifier.check_retry(self.range.notifier_seq):
                return -EBUSY
            if self.range.start >= self.range.end:
                return -EINVAL
            step = self.range.stats.begin_walk(self.last, self.range.end)
            ret = self.walk()
            step.ret = -EBUSY if ret == _UNLOCKED else ret
            if ret != -EBUSY:
                return step.ret
            guard.restarting_at(self.last)

    def walk(self) -> int:
        """Go on at ``last`` until the end (0), an error, or a fault after which to restart (-EBUSY)."""
        while self.last < self.range.end:
            past = self.last + (self.wave << 12)
            if past < self.range.end:
                # Between PMDs: the words of a device-private one tell where its extent began.
                past = self.resolver.wave_end(past & -(1 << 21))
            past = min(past, self.range.end)
            stop = self.resolver.resolve(self.last, past)
            if stop is None:
                self.last = past
                self.wave = min(2 * self.wave, self.resolver.max_wave)
                continue
            self.last = stop.va
            self.wave = min(FIRST_WAVE_AFTER_STOP, self.resolver.max_wave)
            ret = self.serve(stop)
            if ret:
                return ret
        return 0

    def serve(self, stop: Stop) -> int:
        """Do what one stop asks for; 0 if the walk itself goes on there."""
        if stop.action == _FAULT:
            return self.hmm_vma_fault(stop)
        if stop.action in (_WAIT_PTE, _WAIT_PMD):
            level = 1 if stop.action == _WAIT_PTE else 2
            self.range.stats.migration_waits += 1
            va = stop.va if level == 1 else stop.va & -(1 << 21)
            with self.mm.mmap_lock.released():
                self.handler.migration_entry_wait(self.mm, va, level)
            return -EBUSY
        if stop.action in (_SPLIT, _CLEAR):
            with self.mm.mmap_lock.write() as undisturbed:
                if undisturbed:  # else another thread may have changed the entry: look again
                    self.range.stats.splits += stop.action == _SPLIT
                    self.mm.set_entry(stop.va, stop.level, 0)
            return 0
        if stop.action == _MISSING:
            raise ValueError(
                f"the walk of va {stop.va:#x} needs the table behind its level {stop.level} entry, "
                "which is missing"
            )
        return -EFAULT

    def hmm_vma_fault(self, stop: Stop) -> int:
        vma = self.mm.vmas[stop.vma]
        flags = self.range.fault_flags
        if stop.need & int(HMM_NEED_WRITE_FAULT):
            if not vma.flags & VM_WRITE:
                return -EPERM
            flags |= FAULT_FLAG_WRITE
        mm, stats = self.mm, self.range.stats
        with mm.mmap_lock.write() as undisturbed:
            if not undisturbed and mm.vmas.lookup(stop.va) is not vma:
                return -EBUSY  # another thread changed the area in the meantime: walk again
            handler = self.handler
            if isinstance(handler, BurstHandler):
                calls, result = handler.handle_mm_fault_range(mm, vma, stop.va, stop.end, flags)
                stats.faults += calls
                return self.after_fault(result) or -EBUSY
            for va in range(stop.va, stop.end, 4096):
                stats.faults += 1
                ret = self.after_fault(handler.handle_mm_fault(mm, vma, va, flags))
                if ret:
                    return ret
        return -EBUSY

    def after_fault(self, result: int) -> int:
        """Return what ends a burst after a fault that gave the VM_FAULT_* bits ``result``; 0 if nothing."""
        by_kind = self.mm.kernel.faults_after_walk
        if by_kind and result & _DROPPED:
            self.range.stats.locks_dropped += 1
            return _UNLOCKED
        if not result & VM_FAULT_ERROR:
            return 0
        if by_kind and result & VM_FAULT_OOM:
            return -ENOMEM
        # vm_fault_to_errno knows all but FALLBACK.
        return -EINVAL if by_kind and result & VM_FAULT_ERROR == VM_FAULT_FALLBACK else -EFAULT

    @property
    def handler(self) -> FaultHandler:
        return self.mm.faults
