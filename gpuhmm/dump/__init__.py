"""Page tables out of the memory of a machine: read from CR3, found by a scan, made an AddressSpace."""

from gpuhmm.dump.load import MAX_TABLES, load_tables
from gpuhmm.dump.raw_tables import FAULT_DTYPE, FAULT_MISSING, FAULT_RESERVED, RawTables

__all__ = ["FAULT_DTYPE", "FAULT_MISSING", "FAULT_RESERVED", "MAX_TABLES", "RawTables", "load_tables"]
