"""Live Linux processes: their page tables read through /proc, rebuilt, and walked.

Nothing here changes the process that is read; faults happen in the copy.
"""

from gpuhmm.process.capture import ProcessCapture, read_process
from gpuhmm.process.identity import stopped
from gpuhmm.process.maps import Mapping
from gpuhmm.process.summary import MappingSummary, PageCounts, ProcessSummary, summarize, summary_of
from gpuhmm.process.walk import PreparedBackend, ProcessWalk, prepare, walk_process

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
