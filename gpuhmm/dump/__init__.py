"""Page tables out of the memory of a machine: read from CR3, found by a scan, made an AddressSpace."""

from gpuhmm.dump.areas import areas_of
from gpuhmm.dump.capture import read_dump, read_maps
from gpuhmm.dump.load import MAX_TABLES, load_tables, processor_roots
from gpuhmm.dump.raw_tables import FAULT_DTYPE, FAULT_MISSING, FAULT_RESERVED, RawTables
from gpuhmm.dump.release import release_of
from gpuhmm.dump.roots import ROOT_DTYPE, find_roots
from gpuhmm.dump.space import AREAS_RULE, DumpSpace, address_space
from gpuhmm.dump.zero_pages import find_zero_pages

__all__ = [
    "AREAS_RULE",
    "FAULT_DTYPE",
    "FAULT_MISSING",
    "FAULT_RESERVED",
    "MAX_TABLES",
    "ROOT_DTYPE",
    "DumpSpace",
    "RawTables",
    "address_space",
    "areas_of",
    "find_roots",
    "find_zero_pages",
    "load_tables",
    "processor_roots",
    "read_dump",
    "read_maps",
    "release_of",
]
