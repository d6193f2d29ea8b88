"""Runs as a Perfetto trace: TrackEvents, to be opened at https://ui.perfetto.dev.

Every driver's run is a process.  Slices of one track must not overlap, so that ranges which were served
together lie on tracks of one name, which Perfetto shows as one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.access import ACCESS_NAMES
from gpuhmm.coalesce.run import CoalesceRun
from gpuhmm.coalesce.timeline import MARKS
from gpuhmm.results.partial_file import whole_file

#: Faults of one run that are drawn as instants, if nothing else is said.
MAX_FAULTS = 100_000

_SERVICE, _REPLAY, _INVALIDATION, _RETRY = (
    MARKS.index(name) for name in ("service", "replay", "invalidation", "retry")
)

#: Counts of a batch that are drawn over time.
_COUNTED = ("raw", "coalesced", "unique")


@dataclass(frozen=True)
class Written:
    """What went into a trace, and what did not: faults beyond the cap, marks that a run did not keep."""

    slices: int
    instants: int
    faults: int
    faults_left_out: int
    not_kept: int


def write_perfetto(
    path: str | os.PathLike[str], runs: Sequence[CoalesceRun], *, max_faults: int = MAX_FAULTS
) -> Written:
    """Write runs to a ``.pftrace`` file, whole or not at all, and return what it holds.

    Timestamps are the model's ns.  A run has the tracks: batches (slices with their counts), services (a
    slice a range and call, with its address, its pages and how often it had to be asked for again; ``retry``
    where the answer was stale), replays and invalidations by the CPU (instants), faults of a batch
    (counters), and the first ``max_faults`` faults as instants, a track a GPC.

    Runs need a timeline that kept what happened.  ValueError for none, and for a negative ``max_faults``;
    ImportError without the package perfetto; OSError for a file that cannot be written.
    """
    if not runs:
        raise ValueError("a trace needs at least one run")
    if max_faults < 0:
        raise ValueError(f"max_faults must not be negative (got {max_faults})")
    writer = _Writer(protos())
    left_out = 0
    with whole_file(path) as partial, open(partial, "wb") as file:
        writer.file = file
        for place, run in enumerate(runs):
            left_out += _Run(writer, run, place).write(max_faults)
    not_kept = sum(run.timeline.left_out for run in runs)
    return Written(writer.slices, writer.instants, writer.faults, left_out, not_kept)


def protos() -> Any:
    """Return the module of Perfetto's protobuf classes.  ImportError that says what to install."""
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2
    except ImportError as error:
        raise ImportError("a Perfetto trace needs the package perfetto: pip install 'gpuhmm[out]'") from error
    return perfetto_trace_pb2


class _Writer:
    """Writes packets one by one, so that a long trace needs no memory."""

    def __init__(self, proto: Any) -> None:
        self.proto = proto
        self.file: Any = None
        self.tracks = self.slices = self.instants = self.faults = 0
        self._first = True

    def packet(self, timestamp: int | None = None) -> Any:
        packet = self.proto.TracePacket()
        packet.trusted_packet_sequence_id = 1
        if timestamp is not None:
            packet.timestamp = timestamp
        if self._first:
            packet.sequence_flags = self.proto.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
            self._first = False
        return packet

    def put(self, packet: Any) -> None:
        self.file.write(self.proto.Trace(packet=[packet]).SerializeToString())

    def track(self, name: str, parent: int = 0, *, rank: int = 0, unit: str = "") -> int:
        """Describe a new track and return its number; with a ``unit`` it is a counter."""
        self.tracks += 1
        packet = self.packet()
        track = packet.track_descriptor
        track.uuid, track.name, track.sibling_order_rank = self.tracks, name, rank
        if parent:
            track.parent_uuid = parent
        if unit:
            track.counter.unit_name = unit
        self.put(packet)
        return self.tracks

    def process(self, name: str, pid: int, words: str) -> int:
        """Describe a process and return the number of its track."""
        self.tracks += 1
        packet = self.packet()
        track = packet.track_descriptor
        track.uuid, track.description = self.tracks, words
        track.process.pid, track.process.process_name = pid, name
        track.child_ordering = self.proto.TrackDescriptor.EXPLICIT
        self.put(packet)
        return self.tracks

    def slice(self, track: int, name: str, start: int, end: int, notes: dict[str, Any]) -> None:
        self._event(track, self.proto.TrackEvent.TYPE_SLICE_BEGIN, start, name, notes)
        self._event(track, self.proto.TrackEvent.TYPE_SLICE_END, end)
        self.slices += 1

    def instant(self, track: int, name: str, at: int, notes: dict[str, Any]) -> None:
        self._event(track, self.proto.TrackEvent.TYPE_INSTANT, at, name, notes)
        self.instants += 1

    def count(self, track: int, at: int, value: int) -> None:
        packet = self.packet(at)
        event = packet.track_event
        event.type, event.track_uuid = self.proto.TrackEvent.TYPE_COUNTER, track
        event.counter_value = value
        self.put(packet)

    def _event(self, track: int, kind: int, at: int, name: str = "", notes: Any = None) -> None:
        packet = self.packet(at)
        event = packet.track_event
        event.type, event.track_uuid = kind, track
        if name:
            event.name = name
        for key, value in (notes or {}).items():
            note = event.debug_annotations.add()
            note.name = key
            if isinstance(value, str):
                note.string_value = value
            elif key in ("address", "end"):
                note.pointer_value = value
            else:
                note.uint_value = value
        self.put(packet)


class _Run:
    """One run on its way into a trace."""

    def __init__(self, writer: _Writer, run: CoalesceRun, place: int) -> None:
        self.writer, self.run = writer, run
        settings = ", ".join(f"{name}={value}" for name, value in run.settings.items())
        words = f"{settings}; times by the cost model {run.costs.name}, not a prediction"
        self.process = writer.process(f"{run.driver}", place + 1, words)
        self.marks = run.timeline.marks()

    def write(self, max_faults: int) -> int:
        """Write everything; return how many faults were left out."""
        self._batches()
        self._services()
        self._instants("replays", _REPLAY, "replay", 3)
        self._instants("invalidations", _INVALIDATION, "invalidation", 4)
        return self._faults(max_faults)

    def _batches(self) -> None:
        writer, table = self.writer, self.run.batches
        track = writer.track("batches", self.process, rank=1)
        names = [name for name in table.dtype.names or () if name not in ("start", "end")]
        for number, row in enumerate(table):
            counts = {name: int(row[name]) for name in names if row[name]}
            writer.slice(track, "batch", int(row["start"]), int(row["end"]), {"batch": number, **counts})
        for name in _COUNTED:
            counter = writer.track(f"faults of a batch: {name}", self.process, rank=0, unit="faults")
            for number, row in enumerate(table):
                writer.count(counter, int(row["start"]), int(row[name]))
                last = number + 1 == len(table)
                if last or int(table["start"][number + 1]) > int(row["end"]):
                    writer.count(counter, int(row["end"]), 0)

    def _services(self) -> None:
        writer, marks = self.writer, self.marks
        marks = marks[(marks["kind"] == _SERVICE) | (marks["kind"] == _RETRY)]
        if not len(marks):
            writer.track("services", self.process, rank=2)
        tracks: list[int] = []
        stale: dict[tuple[int, ...], int] = {}
        for lane, mark in lanes(marks):
            while lane >= len(tracks):
                tracks.append(writer.track("services", self.process, rank=2))
            about = tuple(int(mark[name]) for name in ("batch", "space", "va", "va_end"))
            notes = {
                "batch": about[0],
                "space": about[1],
                "address": about[2],
                "end": about[3],
                "pages": int(mark["pages"]),
                "retries": stale.get(about, 0),
            }
            again = int(mark["kind"]) == _RETRY
            if again:
                stale[about] = stale.get(about, 0) + 1
            name = "retry" if again else "service"
            writer.slice(tracks[lane], name, int(mark["start"]), int(mark["end"]), notes)

    def _instants(self, title: str, kind: int, name: str, rank: int) -> None:
        writer = self.writer
        track = writer.track(title, self.process, rank=rank)
        for mark in self.marks[self.marks["kind"] == kind]:
            notes = {"batch": int(mark["batch"])}
            if mark["va_end"]:
                notes |= {"space": int(mark["space"]), "address": int(mark["va"]), "end": int(mark["va_end"])}
            writer.instant(track, name, int(mark["start"]), notes)

    def _faults(self, most: int) -> int:
        writer, faults = self.writer, self.run.timeline.faults()
        batch_of = self.run.timeline.batch_of_faults()
        shown = faults[:most]
        tracks = {
            int(gpc): writer.track(f"faults of GPC {gpc}", self.process, rank=5 + int(gpc))
            for gpc in np.unique(shown.gpc)
        }
        for row in range(len(shown)):
            notes = {
                "address": int(shown.va[row]),
                "space": int(shown.space[row]),
                "utlb": int(shown.utlb[row]),
                "sm": int(shown.sm[row]),
                "batch": int(batch_of[row]),
            }
            track = tracks[int(shown.gpc[row])]
            writer.instant(track, ACCESS_NAMES[int(shown.access[row])], int(shown.time[row]), notes)
        writer.faults += len(shown)
        return len(faults) - len(shown)


def lanes(marks: npt.NDArray[np.void]) -> Iterator[tuple[int, np.void]]:
    """Yield marks by their start, each with the lowest lane that is free by then, as few as there can be."""
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    used = 0
    for mark in marks[np.argsort(marks["start"], kind="stable")]:
        start = int(mark["start"])
        while busy and busy[0][0] <= start:
            heappush(free, heappop(busy)[1])
        if free:
            lane = heappop(free)
        else:
            lane, used = used, used + 1
        heappush(busy, (int(mark["end"]), lane))
        yield lane, mark
