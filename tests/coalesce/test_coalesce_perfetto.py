"""Perfetto traces of runs, read back with the package's own classes."""

from __future__ import annotations

import builtins
import os
from collections import Counter

import numpy as np
import pytest
from coalesce_experiments import experiment, no_accesses

from gpuhmm.coalesce.access import ACCESS_NAMES
from gpuhmm.coalesce.experiment import Experiment
from gpuhmm.coalesce.perfetto_trace import lanes, write_perfetto
from gpuhmm.coalesce.timeline import MARK_DTYPE, MARKS, Timeline

pb2 = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")


@pytest.fixture(scope="module")
def runs():
    """Return two runs, with retries and with a CPU that works meanwhile."""
    return [
        experiment(layout="private-file", cpu="dontneed:40:8", settings=(("batch", batch),)).run(
            timeline=Timeline()
        )
        for batch in (64, 32)
    ]


class Read:
    """A trace that was read: descriptors of tracks by number, events by track."""

    def __init__(self, path):
        trace = pb2.Trace()
        trace.ParseFromString(path.read_bytes())
        self.packets = trace.packet
        self.tracks, self.events = {}, {}
        for packet in trace.packet:
            if packet.HasField("track_descriptor"):
                assert packet.track_descriptor.uuid not in self.tracks
                self.tracks[packet.track_descriptor.uuid] = packet.track_descriptor
            else:
                # A track is described before it is used.
                assert packet.track_event.track_uuid in self.tracks
                self.events.setdefault(packet.track_event.track_uuid, []).append(packet)

    def processes(self):
        return [track for track in self.tracks.values() if track.HasField("process")]

    def of(self, process, name):
        """Return the events of all tracks of a name in a process, a list a track."""
        return [
            self.events.get(number, [])
            for number, track in self.tracks.items()
            if track.parent_uuid == process.uuid and track.name == name
        ]


def notes(packet):
    read = {}
    for note in packet.track_event.debug_annotations:
        read[note.name] = getattr(note, note.WhichOneof("value"))
    return read


def slices(packets):
    """Return (name, start, end, notes) of each slice of a track, which must be properly nested."""
    found, open_ = [], []
    before = 0
    for packet in packets:
        # Within a track, the order in the file is the order in time.
        assert packet.timestamp >= before
        before = packet.timestamp
        if packet.track_event.type == pb2.TrackEvent.TYPE_SLICE_BEGIN:
            open_.append(packet)
            assert len(open_) == 1
        else:
            assert packet.track_event.type == pb2.TrackEvent.TYPE_SLICE_END
            begin = open_.pop()
            found.append((begin.track_event.name, begin.timestamp, packet.timestamp, notes(begin)))
    assert not open_
    return found


def test_a_process_a_run(tmp_path, runs):
    path = tmp_path / "runs.pftrace"
    write_perfetto(path, runs)
    read = Read(path)
    assert [track.process.process_name for track in read.processes()] == ["free", "free"]
    assert [track.process.pid for track in read.processes()] == [1, 2]
    assert "batch=64" in read.processes()[0].description
    assert "not a prediction" in read.processes()[0].description
    first = read.packets[0]
    assert first.sequence_flags == pb2.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
    assert {packet.trusted_packet_sequence_id for packet in read.packets} == {1}


def test_batches(tmp_path, runs):
    path = tmp_path / "runs.pftrace"
    write_perfetto(path, runs)
    read = Read(path)
    for run, process in zip(runs, read.processes(), strict=True):
        (packets,) = read.of(process, "batches")
        found = slices(packets)
        assert len(found) == len(run.batches)
        for number, (row, (name, start, end, counts)) in enumerate(zip(run.batches, found, strict=True)):
            assert (name, start, end) == ("batch", int(row["start"]), int(row["end"]))
            assert counts["batch"] == number
            for field in row.dtype.names:
                if field not in ("start", "end"):
                    assert counts.get(field, 0) == int(row[field])


def test_services_and_retries(tmp_path, runs):
    path = tmp_path / "runs.pftrace"
    write_perfetto(path, runs)
    read = Read(path)
    for run, process in zip(runs, read.processes(), strict=True):
        marks = run.timeline.marks()
        expected = Counter(
            (
                MARKS[int(mark["kind"])],
                *(int(mark[name]) for name in ("start", "end", "batch", "space", "va", "va_end", "pages")),
            )
            for mark in marks
            if MARKS[int(mark["kind"])] in ("service", "retry")
        )
        found = [one for packets in read.of(process, "services") for one in slices(packets)]
        names = {"retry": "retry", "service": "service"}
        written = Counter(
            (
                names[name],
                start,
                end,
                *(about[field] for field in ("batch", "space", "address", "end", "pages")),
            )
            for name, start, end, about in found
        )
        assert written == expected
        retried = sum(name == "retry" for name, *_ in found)
        assert retried == run.totals["ebusy"] + run.totals["read_retries"] > 0
        # Every range that had to be asked for again says how often.
        assert sum(about["retries"] for name, _, _, about in found if name == "service") >= 1


def test_replays_and_invalidations(tmp_path, runs):
    path = tmp_path / "runs.pftrace"
    write_perfetto(path, runs)
    read = Read(path)
    for run, process in zip(runs, read.processes(), strict=True):
        marks = run.timeline.marks()
        for title, kind in (("replays", "replay"), ("invalidations", "invalidation")):
            (packets,) = read.of(process, title)
            chosen = marks[marks["kind"] == MARKS.index(kind)]
            assert len(chosen) > 0
            assert [packet.timestamp for packet in packets] == [int(at) for at in chosen["start"]]
            assert {packet.track_event.name for packet in packets} == {kind}
            assert {packet.track_event.type for packet in packets} == {pb2.TrackEvent.TYPE_INSTANT}
        assert len(read.of(process, "replays")[0]) == run.totals["replays"]
        assert [notes(packet)["address"] for packet in packets] == [int(va) for va in chosen["va"]]


def test_counters(tmp_path, runs):
    path = tmp_path / "runs.pftrace"
    write_perfetto(path, runs)
    read = Read(path)
    for run, process in zip(runs, read.processes(), strict=True):
        for name in ("raw", "coalesced", "unique"):
            (packets,) = read.of(process, f"faults of a batch: {name}")
            assert all(packet.track_event.type == pb2.TrackEvent.TYPE_COUNTER for packet in packets)
            values = [(packet.timestamp, packet.track_event.counter_value) for packet in packets]
            rising = [value for value in values if value[1]]
            assert rising == [(int(row["start"]), int(row[name])) for row in run.batches]
            assert values[-1] == (int(run.batches["end"][-1]), 0)


@pytest.mark.parametrize("most", [0, 10, 100_000])
def test_faults_up_to_a_cap(tmp_path, runs, most):
    path = tmp_path / "runs.pftrace"
    written = write_perfetto(path, runs, max_faults=most)
    read = Read(path)
    seen = 0
    for run, process in zip(runs, read.processes(), strict=True):
        faults = run.timeline.faults()[:most]
        gpcs = {int(gpc) for gpc in faults.gpc}
        assert most < 20 or len(gpcs) == 4
        for gpc in range(4):
            tracks = read.of(process, f"faults of GPC {gpc}")
            assert len(tracks) == (gpc in gpcs)
            for packets in tracks:
                mine = faults[faults.gpc == gpc]
                assert [packet.timestamp for packet in packets] == [int(at) for at in mine.time]
                assert [packet.track_event.name for packet in packets] == [
                    ACCESS_NAMES[int(kind)] for kind in mine.access
                ]
                assert [notes(packet)["address"] for packet in packets] == [int(va) for va in mine.va]
                assert [notes(packet)["utlb"] for packet in packets] == [int(one) for one in mine.utlb]
                seen += len(packets)
    every = sum(int(run.totals["raw"]) for run in runs)
    assert written.faults == seen
    assert written.faults_left_out == every - seen
    assert written.slices == sum(
        packet.track_event.type == pb2.TrackEvent.TYPE_SLICE_BEGIN for packet in read.packets
    )
    assert written.not_kept == 0


def test_a_run_without_faults(tmp_path):
    run = Experiment("none", backend="cpu", make_device=no_accesses).run(timeline=Timeline())
    write_perfetto(tmp_path / "none.pftrace", [run])
    read = Read(tmp_path / "none.pftrace")
    assert not read.events
    assert len(read.processes()) == 1


def test_lanes_are_as_few_as_there_can_be():
    rng = np.random.default_rng(0)
    marks = np.zeros(500, dtype=MARK_DTYPE)
    marks["start"] = rng.integers(0, 1000, 500)
    marks["end"] = marks["start"] + rng.integers(0, 20, 500).astype(np.uint64)
    last, used = {}, set()
    for lane, mark in lanes(marks):
        assert last.get(lane, 0) <= mark["start"]
        last[lane] = mark["end"]
        used.add(lane)
    edges = np.concatenate((marks["start"], marks["end"]))
    steps = np.concatenate((np.ones(500), -np.ones(500)))
    # At one time, what ends makes room for what begins.
    depth = np.cumsum(steps[np.lexsort((steps, edges))]).max()
    instant = marks["start"] == marks["end"]
    assert depth <= len(used) <= depth + int(instant.sum() > 0)


def test_bad_input(tmp_path, runs):
    with pytest.raises(ValueError, match="at least one run"):
        write_perfetto(tmp_path / "a.pftrace", [])
    with pytest.raises(ValueError, match="max_faults"):
        write_perfetto(tmp_path / "a.pftrace", runs, max_faults=-1)
    with pytest.raises(OSError, match="cannot be written"):
        write_perfetto(tmp_path / "no" / "a.pftrace", runs)
    assert os.listdir(tmp_path) == []


def test_all_or_nothing(tmp_path, runs, monkeypatch):
    path = tmp_path / "runs.pftrace"
    path.write_text("before")
    faults = Timeline.faults

    def broken(self):
        if self is runs[1].timeline:
            raise KeyboardInterrupt
        return faults(self)

    monkeypatch.setattr(Timeline, "faults", broken)
    with pytest.raises(KeyboardInterrupt):
        write_perfetto(path, runs)
    assert os.listdir(tmp_path) == ["runs.pftrace"]
    assert path.read_text() == "before"


def test_without_the_package(tmp_path, runs, monkeypatch):
    imported = builtins.__import__

    def missing(name, *more):
        if name.startswith("perfetto"):
            raise ImportError(name)
        return imported(name, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match="pip install 'gpuhmm\\[out\\]'"):
        write_perfetto(tmp_path / "a.pftrace", runs)
    assert os.listdir(tmp_path) == []
