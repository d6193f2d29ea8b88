"""Access patterns of real kernels, as programs for a modelled GPU."""

from gpuhmm.coalesce.patterns.program_areas import Workload
from gpuhmm.coalesce.patterns.registry import PATTERNS, Pattern, workload

__all__ = ["PATTERNS", "Pattern", "Workload", "workload"]
