"""Live Linux processes: their page tables read through /proc, rebuilt, and walked.

Nothing here changes the process that is read; faults happen in the copy.  What is read is a
:class:`gpuhmm.capture.Capture`, as it is of a dump or a snapshot.  What walks one can be had here too, under
names that speak of a process.
"""

from gpuhmm.capture import Capture as ProcessCapture
from gpuhmm.capture import CaptureSummary as ProcessSummary
from gpuhmm.capture import CaptureWalk as ProcessWalk
from gpuhmm.capture import (
    Mapping,
    MappingSummary,
    PageCounts,
    PreparedBackend,
    prepare,
    summarize,
    summary_of,
)
from gpuhmm.capture import walk_capture as walk_process
from gpuhmm.process.identity import stopped
from gpuhmm.process.read import read_process

__all__ = [
    "Mapping",
    "MappingSummary",
    "PageCounts",
    "PreparedBackend",
    "ProcessCapture",
    "ProcessSummary",
    "ProcessWalk",
    "prepare",
    "read_process",
    "stopped",
    "summarize",
    "summary_of",
    "walk_process",
]
