"""What a walk gave, in files and on devices: Parquet, NumPy, JSON, device arrays."""

from gpuhmm.results.device import device_columns
from gpuhmm.results.files import SUFFIXES, check_suffix, read_results, write_results
from gpuhmm.results.partial_file import whole_file

__all__ = ["SUFFIXES", "check_suffix", "device_columns", "read_results", "whole_file", "write_results"]
