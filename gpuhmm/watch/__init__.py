"""What changed between two captures of one process."""

from gpuhmm.watch.changes import CHANGE_DTYPE, Changes, compare
from gpuhmm.watch.page_change import Change

__all__ = ["CHANGE_DTYPE", "Change", "Changes", "compare"]
