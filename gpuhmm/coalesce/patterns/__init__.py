"""Access patterns of real kernels, as programs for a modelled GPU."""

from gpuhmm.coalesce.patterns.registry import PATTERNS, Pattern, workload
from gpuhmm.coalesce.patterns.workload import Workload

__all__ = ["PATTERNS", "Pattern", "Workload", "workload"]
