"""Whole recorded traces at once: batches, what merges, the sorted order and its windows."""

from __future__ import annotations

from gpuhmm.coalesce.preprocess.coalesce import coalesce_trace
from gpuhmm.coalesce.preprocess.table import COUNTS, DUPLICATE, NEW_WINDOW, BatchTable

__all__ = ["COUNTS", "DUPLICATE", "NEW_WINDOW", "BatchTable", "coalesce_trace"]
