"""volatility3: gpuhmm as a translation layer, and gpuhmm's images as a layer of physical memory.

    context = contexts.Context()
    context.add_layer(PhysicalLayer(context, "memory", open_image("dump.lime")))
    context.add_layer(TranslationLayer(context, "primary", tables, "memory"))

Written against volatility3 2.28: framework/interfaces/layers.py, framework/layers/intel.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from gpuhmm.errors import MissingMemoryError
from gpuhmm.image import as_source
from gpuhmm.mm.x86 import U64
from gpuhmm.translation import iter_mappings
from gpuhmm.translation.source import tables_of

try:
    from volatility3.framework import exceptions, interfaces
    from volatility3.framework.layers import linear
except ImportError as error:
    raise ImportError(
        "the layers of gpuhmm.dump.volatility need volatility3: pip install volatility3"
    ) from error

_PAGE = 4096

#: offset, length, offset below, length below, layer below
_Mapping = tuple[int, int, int, int, str]
#: start, size, physical address, in bytes
_Run = tuple[int, int, int]

#: Bytes of a window, the reach of one leaf table, and how many are kept: up to 128 MiB of runs.
_WINDOW = 1 << 21
_WINDOWS = 1 << 11


class PhysicalLayer(interfaces.layers.DataLayerInterface):  # type: ignore[misc]
    """Physical memory of gpuhmm (an image, or any object that reads) as a volatility3 layer.

    ``memory`` is what :func:`gpuhmm.image.as_source` takes.  It is never written.
    """

    def __init__(self, context: Any, name: str, memory: Any, *, maximum_address: int = (1 << 52) - 1) -> None:
        super().__init__(context=context, config_path=name, name=name)
        self._memory = as_source(memory)
        segments = getattr(self._memory, "segments", None)
        self._maximum = segments[-1].address + segments[-1].size - 1 if segments else maximum_address

    @property
    def maximum_address(self) -> int:
        """The last address that there is, or may be where that is not known."""
        return int(self._maximum)

    @property
    def minimum_address(self) -> int:
        """0."""
        return 0

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """True if every byte of ``[offset, offset + length)`` can be read."""
        if not 0 <= offset <= offset + length - 1 <= self._maximum:
            return False
        first = offset & -_PAGE
        pages = np.arange(first, offset + length, _PAGE, dtype=np.uint64)
        pages[0] = offset
        inside = self._memory.contains(np.append(pages, U64(offset + length - 1)))
        if inside is not None:
            return bool(inside.all())
        try:
            self._memory.read(offset, length)
        except MissingMemoryError:
            return False
        return True

    def read(self, offset: int, length: int, pad: bool = False) -> bytes:
        """Return ``length`` bytes; with ``pad`` zeros in place of pages that are missing."""
        try:
            return self._memory.read(offset, length)
        except MissingMemoryError as error:
            if not pad:
                raise exceptions.InvalidAddressException(self.name, offset, str(error)) from error
        parts = []
        end = offset + length
        while offset < end:
            size = min(end, (offset & -_PAGE) + _PAGE) - offset
            try:
                parts.append(self._memory.read(offset, size))
            except MissingMemoryError:
                parts.append(bytes(size))
            offset += size
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """NotImplementedError: an image is evidence."""
        raise NotImplementedError("gpuhmm never writes to physical memory")


class TranslationLayer(linear.LinearlyMappedLayer):  # type: ignore[misc]
    """What page tables map, as a volatility3 layer on top of ``memory_layer``, the name of another.

    ``source`` is what :func:`gpuhmm.translate` takes.  What is asked for is translated, and the last windows
    of 2 MiB are kept: a kernel with KASAN maps 16 TiB of shadow through three tables, which nobody could
    keep.  Addresses are those of volatility3's Intel layers: the bits that canonical ones repeat may be
    there or not.
    """

    def __init__(
        self, context: Any, name: str, source: Any, memory_layer: str, *, backend: str = "auto"
    ) -> None:
        super().__init__(context=context, config_path=name, name=name)
        self._base_layer = memory_layer
        self._bits = 12 + 9 * tables_of(source).levels
        self._source = source
        self._backend = backend
        self._window = lru_cache(_WINDOWS)(lambda at: list(self._translated(at, at + _WINDOW)))

    @property
    def maximum_address(self) -> int:
        """The last of the addresses that are translated, 2^48 - 1 or 2^57 - 1."""
        return (1 << self._bits) - 1

    @property
    def minimum_address(self) -> int:
        """0."""
        return 0

    @property
    def dependencies(self) -> list[str]:
        """The layer of physical memory."""
        return [self._base_layer]

    @property
    def bits_per_register(self) -> int:
        """64."""
        return 64

    def canonicalize(self, addr: int) -> int:
        """Return the address as a program sees it, with its top bit repeated."""
        if addr >> (self._bits - 1) & 1:
            return addr | (1 << 64) - (1 << self._bits)
        return addr

    def decanonicalize(self, addr: int) -> int:
        """Return the address without the bits that are repeated."""
        return addr & self.maximum_address

    def is_valid(self, offset: int, length: int = 1) -> bool:
        """True if every byte of ``[offset, offset + length)`` is mapped to memory that there is."""
        try:
            return sum(size for _, size, *_ in self.mapping(offset, length)) == length
        except exceptions.InvalidAddressException:
            return False

    def mapping(self, offset: int, length: int, ignore_errors: bool = False) -> Iterator[_Mapping]:
        """Yield (offset, length, physical offset, length, layer) of each contiguous piece, by address.

        InvalidAddressException at the first hole, unless ``ignore_errors``.
        """
        base = self._context.layers[self._base_layer]
        prefix = offset & ~self.maximum_address
        at = offset & self.maximum_address
        end = at + max(length, 1)
        for start, size, physical in self._runs(at, end):
            if at < start:
                self._hole(prefix | at, ignore_errors)
                at = start
            past = min(start + size, end)
            for low, high in self._there(base, at, past, physical - start):
                if low > at:
                    self._hole(prefix | at, ignore_errors)
                mapped = physical + low - start
                piece = high - low if length else 0
                yield prefix | low, piece, mapped, piece, self._base_layer
                at = high
            if at < past:
                self._hole(prefix | at, ignore_errors)
                at = past
        if at < end:
            self._hole(prefix | at, ignore_errors)

    def _runs(self, low: int, high: int) -> Iterator[_Run]:
        """Yield what is mapped in ``[low, high)``, by address, cut there."""
        window = low & -_WINDOW
        if high - window > _WINDOW:
            yield from self._translated(low, high)
            return
        for start, size, physical in self._window(window):
            cut = max(low - start, 0)
            if cut < size and start < high:
                yield start + cut, size - cut, physical + cut

    def _translated(self, low: int, high: int) -> Iterator[_Run]:
        """Yield what is mapped in the pages of ``[low, high)``, by address, without keeping it."""
        first, past = low & -_PAGE, min(high + _PAGE - 1 & -_PAGE, self.maximum_address + 1)
        start, end = self.canonicalize(first), self.canonicalize(past - 1) + 1
        for runs in iter_mappings(self._source, start, end, split_by="address", backend=self._backend):
            vas, sizes = runs["va"] & U64(self.maximum_address), runs["npages"] << U64(12)
            yield from zip(vas.tolist(), sizes.tolist(), runs["pa"].tolist(), strict=True)

    def _hole(self, address: int, ignore_errors: bool) -> None:
        if not ignore_errors:
            raise exceptions.InvalidAddressException(
                self.name, address, f"{self.name} maps nothing at {address:#x}"
            )

    def _there(self, base: Any, low: int, high: int, delta: int) -> Iterator[tuple[int, int]]:
        """Yield what of ``[low, high)`` lies in memory that the layer below has."""
        if base.is_valid(low + delta, high - low):
            yield low, high
            return
        begun = None
        at = low
        while at < high:
            past = min((at & -_PAGE) + _PAGE, high)
            if base.is_valid(at + delta, past - at):
                begun = at if begun is None else begun
            elif begun is not None:
                yield begun, at
                begun = None
            at = past
        if begun is not None:
            yield begun, high
