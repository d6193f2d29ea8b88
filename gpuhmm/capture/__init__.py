"""What was read of a process, a dump or a snapshot: the record of it, its walk and its summary."""

from gpuhmm.capture.from_space import capture_of_space, cut_capture, mapping_of
from gpuhmm.capture.mapping import Mapping
from gpuhmm.capture.record import Capture, Identity, LiveProcess
from gpuhmm.capture.summary import CaptureSummary, MappingSummary, PageCounts, summarize, summary_of
from gpuhmm.capture.walk import CaptureWalk, PreparedBackend, prepare, walk_capture

__all__ = [
    "Capture",
    "CaptureSummary",
    "CaptureWalk",
    "Identity",
    "LiveProcess",
    "Mapping",
    "MappingSummary",
    "PageCounts",
    "PreparedBackend",
    "capture_of_space",
    "cut_capture",
    "mapping_of",
    "prepare",
    "summarize",
    "summary_of",
    "walk_capture",
]
