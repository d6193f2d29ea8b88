"""Physical memory: images of it in files, and anything else with ``read(address, size)``."""

from gpuhmm.physical.formats import FORMATS, as_memory, open_image
from gpuhmm.physical.image import ImageFile, Segment
from gpuhmm.physical.memory import PhysicalMemory
from gpuhmm.physical.reader import ReaderMemory

__all__ = [
    "FORMATS",
    "ImageFile",
    "PhysicalMemory",
    "ReaderMemory",
    "Segment",
    "as_memory",
    "open_image",
]
