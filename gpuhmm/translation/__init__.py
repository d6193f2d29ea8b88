"""Virtual to physical addresses, by the million: single ones, ranges, and everything that is mapped."""

from gpuhmm.translation.addresses import Translation, translate, translate_range
from gpuhmm.translation.mapped import MAPPING_DTYPE, iter_mappings, mappings
from gpuhmm.translation.runs import MAPPING_NX, MAPPING_PROTNONE, MAPPING_USER, MAPPING_WRITE
from gpuhmm.translation.words import Reason

__all__ = [
    "MAPPING_DTYPE",
    "MAPPING_NX",
    "MAPPING_PROTNONE",
    "MAPPING_USER",
    "MAPPING_WRITE",
    "Reason",
    "Translation",
    "iter_mappings",
    "mappings",
    "translate",
    "translate_range",
]
