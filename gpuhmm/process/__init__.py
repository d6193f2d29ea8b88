"""Live Linux processes: their page tables read through /proc, rebuilt, and walked.

Nothing here changes the process that is read; faults happen in the copy.
"""

from gpuhmm.capture.mapping import Mapping
from gpuhmm.capture.record import ProcessCapture
from gpuhmm.capture.summary import MappingSummary, PageCounts, ProcessSummary, summarize, summary_of
from gpuhmm.capture.walk import PreparedBackend, ProcessWalk, prepare, walk_process
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
