"""Physical memory: images of it in files, and anything else with ``read(address, size)``."""

from gpuhmm.image.formats import FORMATS, as_source, open_image
from gpuhmm.image.file import ImageFile, Segment
from gpuhmm.image.source import MemorySource
from gpuhmm.image.reader import ReaderSource

__all__ = [
    "FORMATS",
    "ImageFile",
    "MemorySource",
    "ReaderSource",
    "Segment",
    "as_source",
    "open_image",
]
