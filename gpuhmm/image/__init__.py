"""Physical memory: images of it in files, and anything else with ``read(address, size)``."""

from gpuhmm.image.file import ImageFile, Segment
from gpuhmm.image.formats import FORMATS, as_source, open_image
from gpuhmm.image.reader import ReaderSource
from gpuhmm.image.source import MemorySource

__all__ = [
    "FORMATS",
    "ImageFile",
    "MemorySource",
    "ReaderSource",
    "Segment",
    "as_source",
    "open_image",
]
