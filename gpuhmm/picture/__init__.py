"""Pictures of an address space: its areas, and what their pages are, at any scale."""

from gpuhmm.picture.draw import PICTURE_SUFFIXES, check_picture_suffix, draw
from gpuhmm.picture.strips import STATES, Strip, strips_of

__all__ = ["PICTURE_SUFFIXES", "STATES", "Strip", "check_picture_suffix", "draw", "strips_of"]
