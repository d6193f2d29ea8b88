"""The prefetch tree, compiled for the CPU."""

from __future__ import annotations

from numba import njit

from gpuhmm.coalesce.drivers.uvm import prefetch_tree
from gpuhmm.kernels.compile_cache import cached
from gpuhmm.shared import register

register()

prefetch_pages = cached(njit(prefetch_tree.prefetch_pages))
