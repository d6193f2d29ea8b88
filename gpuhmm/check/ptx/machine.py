"""The machine: memory, streams, launches of translated kernels, what was found and counted."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gpuhmm.check.ptx.build import load_kernel
from gpuhmm.check.ptx.memory import Allocation, Memory
from gpuhmm.check.ptx.streams import DEFAULT, Streams, Work
from gpuhmm.check.ptx.translate import translate

#: Kinds of findings, as in simt.h.
KINDS = (
    "out of bounds",
    "misaligned",
    "read before written",
    "race",
    "race of one value",
    "barrier not reached by all",
    "not all lanes of a mask",
    "division by zero",
    "endless",
)
#: Several threads store the same value: CUDA gives that value.
HARMLESS = "race of one value"

_ORDERS = ("first to last", "last to first", "random")
_ACCESSES = ("load", "store", "atomic")
#: Limits of a launch.  Source: CUDA C++ Programming Guide 13.0, table "Technical Specifications".
_MOST_BLOCKS, _MOST_THREADS = 2**31 - 1, 1024
#: Threads of one launch that the check for races can tell apart.
_RACING_THREADS = 2**30 - 2

_U64 = ctypes.c_uint64


class _Span(ctypes.Structure):
    _fields_ = [
        *((name, _U64) for name in ("low", "past", "base", "granule")),
        *((name, ctypes.c_void_p) for name in ("written", "shadow", "touched")),
    ]


class _Finding(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("kind", "line")),
        *((name, _U64) for name in ("address", "thread", "other")),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        *((name, _U64) for name in ("grid", "block", "order", "seed", "number", "counting", "races")),
        ("params", ctypes.POINTER(_U64)),
        ("spans", _U64),
        ("span", ctypes.POINTER(_Span)),
        *((name, _U64) for name in ("warp_instructions", "thread_instructions", "barriers")),
        *((name, _U64 * len(_ACCESSES)) for name in ("requests", "sectors", "bytes")),
        ("counts", _U64 * len(KINDS)),
        ("findings", _U64),
        ("finding", _Finding * 64),
    ]


@dataclass
class Options:
    """How kernels run.

    ``order`` of threads: first to last, last to first, or random: blocks and warps interleaved and warps
    apart, by ``seed``.  ``races``: accesses of two threads of a launch without an order between them.
    ``linked``: PTX after link-time optimisation, as numba-cuda runs it, or before.
    """

    order: Literal["first to last", "last to first", "random"] = "first to last"
    seed: int = 1
    races: bool = True
    linked: bool = True

    def __post_init__(self) -> None:
        if self.order not in _ORDERS:
            raise ValueError(f"order must be one of {', '.join(_ORDERS)} (got {self.order!r})")


@dataclass(frozen=True)
class Kernel:
    """A kernel that was translated and compiled."""

    name: str
    ptx: list[str] = field(repr=False)
    parameters: int
    launch: Any = field(repr=False)

    @classmethod
    def of(cls, name: str, ptx: str) -> Kernel:
        """Translate and compile ``ptx``; PtxError for what is unknown, BackendError without a compiler."""
        entry, source = translate(ptx)
        return cls(name, ptx.splitlines(), len(entry.parameters), load_kernel(source).launch)


@dataclass(frozen=True)
class Array:
    """A part of an allocation that a kernel may touch, in items of ``item`` bytes."""

    address: int
    size: int
    item: int


@dataclass
class Event:
    """What the host asked for: allocate, pin, h2d, d2h, d2d, memset, launch or wait.

    ``counts`` of a launch, once it ran, per launch: ``warp_instructions``, ``thread_instructions``,
    ``barriers``; requests, sectors (of 32 bytes) and bytes of loads, stores and atomics, as warps ask for
    them; ``sectors_read`` and ``sectors_written``, each counted once.
    """

    what: str
    bytes: int = 0
    kernel: str = ""
    grid: int = 0
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Found:
    """A mistake: how often, and the first one in words."""

    count: int
    example: str


class Machine:
    """One device."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.memory = Memory()
        self.streams = Streams()
        self._pins: dict[int, tuple[int, np.ndarray | None]] = {}  # host address -> bytes, owner
        #: What was translated so far, by whatever numba-cuda's kernel and linked are.
        self.kernels: dict[tuple[Any, bool], Kernel] = {}
        #: What happened so far, by name; launches also by the kernel's.
        self.totals: Counter[str] = Counter()
        #: (kernel or copy, kind, line of the PTX or '') -> what was found there.
        self.findings: dict[tuple[str, str, str], Found] = {}
        self._recorders: list[list[Event]] = []
        self._launches = 0

    def mistakes(self) -> list[str]:
        """Return a line for each finding that is not harmless."""
        return [
            f"{where}: {kind}, {found.count} times: {found.example}"
            for (where, kind, _), found in sorted(self.findings.items())
            if kind != HARMLESS
        ]

    def take_mistakes(self) -> list[str]:
        """Return :meth:`mistakes` and forget all findings."""
        taken = self.mistakes()
        self.findings.clear()
        return taken

    @contextmanager
    def recorded(self) -> Iterator[list[Event]]:
        """Record every Event into the list that is given; all queued work is done at the end."""
        events: list[Event] = []
        self.streams.wait_for_all()
        self._recorders.append(events)
        try:
            yield events
            self.streams.wait_for_all()
        finally:
            self._recorders.remove(events)

    def note(self, what: str, size: int = 0, kernel: str = "", grid: int = 0) -> Event:
        """Count an event and return it."""
        event = Event(what, size, kernel, grid)
        self.totals[what] += 1
        if kernel:
            self.totals[f"launch {kernel}"] += 1
        for recorder in self._recorders:
            recorder.append(event)
        return event

    def find(self, where: str, kind: str, line: str, example: str, count: int = 1) -> None:
        """Remember a mistake."""
        self.findings.setdefault((where, kind, line), Found(0, example)).count += count

    # copies

    def upload(self, target: int, source: int, size: int, stream: int, waits: bool) -> None:
        """Copy from the host; what is not pinned is taken at once."""
        to = self.memory.find(target, size, "a copy to the device")
        self.note("h2d", size)
        pinned = self._pinned(source, size)
        data = ctypes.string_at(source, size) if pinned is None else source
        if waits:  # the stream is waited for before; only pinned memory is there on return
            self.streams.wait(stream)

        def copy(_kept: object = pinned) -> None:
            to.write(target, data, size)

        work = self.streams.put(stream, copy)
        if waits and pinned is not None:
            self.streams.wait_for(work)

    def download(self, target: int, source: int, size: int, stream: int, waits: bool) -> None:
        """Copy to the host; only a copy to pinned memory may be done late."""
        of = self.memory.find(source, size, "a copy to the host")
        self.note("d2h", size)
        pinned = self._pinned(target, size)

        def copy(_kept: object = pinned) -> None:
            unwritten = size - int(np.count_nonzero(of.written_part(source, size)))
            if unwritten:
                what = f"{unwritten} of {size} bytes"
                self.find("copy to the host", "read before written", "", what, unwritten)
            ctypes.memmove(target, source, size)

        work = self.streams.put(stream, copy)
        if waits or pinned is None:
            self.streams.wait_for(work)

    def move(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy on the device, late; what was not written stays so."""
        to = self.memory.find(target, size, "a copy on the device")
        of = self.memory.find(source, size, "a copy on the device")
        self.note("d2d", size)

        def copy() -> None:
            ctypes.memmove(target, source, size)
            to.written_part(target, size)[:] = of.written_part(source, size).copy()

        self.streams.put(stream, copy)

    def fill(self, target: int, byte: int, size: int, stream: int) -> None:
        """Set bytes, late."""
        to = self.memory.find(target, size, "memset")
        self.note("memset", size)
        self.streams.put(stream, lambda: to.write(target, bytes([byte]) * size, size))

    def pin(self, address: int, size: int, buffer: np.ndarray | None = None) -> None:
        """Take memory of the host as pinned; ``buffer`` lives as long as queued copies need it."""
        self._pins[address] = size, buffer
        self.note("pin", size)

    def unpin(self, address: int) -> None:
        """Take it as pinned no more."""
        del self._pins[address]

    def _pinned(self, address: int, size: int) -> object:
        """Return what keeps pinned memory alive, or None for memory that is not pinned."""
        for low, (most, buffer) in list(self._pins.items()):
            if low <= address and address + size <= low + most:
                return self if buffer is None else buffer
        return None

    # launches

    def launch(
        self,
        kernel: Kernel,
        arguments: list[int],
        arrays: list[Array],
        grid: int,
        block: int,
        stream: int = DEFAULT,
        keep: Any = None,
    ) -> Work:
        """Queue a launch; ``keep`` lives until it is done.

        ValueError for a grid that CUDA refuses or another number of arguments than the kernel has.
        """
        if not 0 < grid <= _MOST_BLOCKS or not 0 < block <= _MOST_THREADS:
            raise ValueError(
                f"{kernel.name}: a launch must have 1 to {_MOST_BLOCKS} blocks of 1 to {_MOST_THREADS} "
                f"threads (got {grid} of {block})"
            )
        if len(arguments) != kernel.parameters:
            raise ValueError(
                f"{kernel.name}: {kernel.parameters} arguments must be given (got {len(arguments)})"
            )
        event = self.note("launch", kernel=kernel.name, grid=grid)
        values = (_U64 * max(len(arguments), 1))(*(value & (1 << 64) - 1 for value in arguments))
        spans = [(array, self.memory.find(array.address, array.size, kernel.name)) for array in arrays]

        def run(kept: Any = keep) -> None:
            self._run(kernel, values, spans, grid, block, event)

        return self.streams.put(stream, run)

    def _run(
        self,
        kernel: Kernel,
        values: Any,
        spans: list[tuple[Array, Allocation]],
        grid: int,
        block: int,
        event: Event,
    ) -> None:
        self._launches += 1
        options, counting = self.options, bool(self._recorders)
        races = options.races and grid * block <= _RACING_THREADS
        granules: dict[int, int] = {}  # one for each allocation, whatever the views of it
        for array, allocation in spans:
            granules[allocation.address] = min(array.item, granules.get(allocation.address, array.item))
        listed = (_Span * max(len(spans), 1))()
        for span, (array, allocation) in zip(listed, spans, strict=False):
            span.low, span.past = array.address, array.address + array.size
            span.base, span.granule = allocation.address, granules[allocation.address]
            span.written = allocation.written.ctypes.data
            span.shadow = allocation.shadow() if races else None
            if counting:
                allocation.touched()[:] = 0
                span.touched = allocation.touched().ctypes.data
        state = _Launch(
            grid=grid,
            block=block,
            order=_ORDERS.index(options.order),
            seed=options.seed + self._launches,
            number=self._launches,
            counting=counting,
            races=races,
            params=values,
            spans=len(spans),
            span=listed,
        )
        kernel.launch(ctypes.byref(state))
        self._keep_findings(kernel, block, state)
        if counting:
            event.counts = _counts(state, {allocation.address: allocation for _, allocation in spans})

    def _keep_findings(self, kernel: Kernel, block: int, state: _Launch) -> None:
        left = dict(zip(KINDS, state.counts, strict=True))
        for finding in state.finding[: state.findings]:
            kind = KINDS[finding.kind]
            line = kernel.ptx[finding.line - 1].strip() if finding.line else ""
            example = (
                f"thread {finding.thread % block} of block {finding.thread // block}, "
                f"address {finding.address:#x}, other thread {finding.other}: {line}"
            )
            self.find(kernel.name, kind, f"{finding.line}", example, left.pop(kind, 0))


def _counts(state: _Launch, allocations: dict[int, Allocation]) -> dict[str, int]:
    counts = {name: getattr(state, name) for name in ("warp_instructions", "thread_instructions", "barriers")}
    for what in ("requests", "sectors", "bytes"):
        counts |= {f"{access}_{what}": getattr(state, what)[i] for i, access in enumerate(_ACCESSES)}
    for bit, name in ((1, "sectors_read"), (2, "sectors_written")):
        counts[name] = sum(int(np.count_nonzero(one.touched() & bit)) for one in allocations.values())
    return counts
