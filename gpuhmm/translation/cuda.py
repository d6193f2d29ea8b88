"""Translation on a CUDA device; tables stay there as long as their source lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numba import cuda

from gpuhmm.kernels.device_tables import THREADS
from gpuhmm.mm.x86 import INDEX_MASK, ONE, PAGE_SHIFT, PMD_SHIFT, U64
from gpuhmm.shared import register
from gpuhmm.translation.runs import RUN_COLUMNS, compared_bits, count_runs, fill_runs
from gpuhmm.translation.words import slot_at, slot_word, translate_one

if TYPE_CHECKING:
    from gpuhmm.mm.tables import Words
    from gpuhmm.translation.source import Tables

register()

#: A leaf table is cut into this many parts of 16 entries, one thread each: a part is one cache line.
_PARTS = 32
_PARTS_SHIFT = U64(5)
_PART_MASK = U64(31)
_PART_ENTRIES_SHIFT = U64(4)

_THREADS = U64(THREADS)

#: Words that are written at once where they go to the host: 512 MiB.
_MAX_WORDS = 1 << 26

_sent: WeakKeyDictionary[Any, _DeviceArrays] = WeakKeyDictionary()


def translate_addresses(vas, levels, upper, child, leaf, words):
    """Write the word of every address; one thread each."""
    i = U64(cuda.grid(1))
    if i < U64(vas.size):
        words[i] = translate_one(vas[i], levels, upper, child, leaf)


def translate_pages(start, npages, levels, upper, child, leaf, words):
    """Write the words of consecutive pages; one block for each slot of 2 MiB."""
    base = ((start >> PMD_SHIFT) + U64(cuda.blockIdx.x)) << PMD_SHIFT
    slot = slot_at(base, levels, upper, child)
    index = U64(cuda.threadIdx.x)
    while index <= INDEX_MASK:
        va = base + (index << PAGE_SHIFT)
        # The last page of the upper half ends at 2^64, which is 0: pages count, not addresses.
        if va >= start and ((va - start) >> PAGE_SHIFT) < npages:
            words[(va - start) >> PAGE_SHIFT] = slot_word(va, slot, leaf)
        index = index + _THREADS


def count_parts(rows, above, split_by, leaf, counts):
    """Count the runs in each part of each leaf table; one thread a part."""
    i = U64(cuda.grid(1))
    table = i >> _PARTS_SHIFT
    if table < U64(rows.size):
        first = (i & _PART_MASK) << _PART_ENTRIES_SHIFT
        past = first + (ONE << _PART_ENTRIES_SHIFT)
        compared = compared_bits(above[table], split_by)
        counts[i] = count_runs(rows[table], first, past, compared, leaf)


def fill_parts(rows, vas, above, split_by, places, leaf, runs):
    """Store the runs of each part from its place on; one thread a part."""
    i = U64(cuda.grid(1))
    table = i >> _PARTS_SHIFT
    if table < U64(rows.size):
        first = (i & _PART_MASK) << _PART_ENTRIES_SHIFT
        past = first + (ONE << _PART_ENTRIES_SHIFT)
        compared = compared_bits(above[table], split_by)
        fill_runs(rows[table], first, past, vas[table], above[table], compared, places[i], leaf, runs)


addresses_kernel = cuda.jit(translate_addresses)
pages_kernel = cuda.jit(translate_pages)
count_kernel = cuda.jit(count_parts)
fill_kernel = cuda.jit(fill_parts)

#: Every kernel with the types of its arguments, for the compile gate.
KERNELS = {
    addresses_kernel: "Array1, uint64, Array2, ChildArray, Array2, Array1",
    pages_kernel: "uint64, uint64, uint64, Array2, ChildArray, Array2, Array1",
    count_kernel: "Array1, Array1, uint64, Array2, Array1",
    fill_kernel: "Array1, Array1, Array1, uint64, Array1, Array2, Array2",
}


class _DeviceArrays:
    """The arrays of some tables in device memory, as they were after ``clock`` stores."""

    def __init__(self, tables: Tables) -> None:
        self.clock = _clock(tables)
        self.upper = cuda.to_device(np.ascontiguousarray(tables.upper))
        self.child = cuda.to_device(np.ascontiguousarray(tables.child))
        # An empty array cannot be sent; no child points to the row that stands in for it.
        leaf = tables.leaf if len(tables.leaf) else np.zeros((1, 512), dtype=np.uint64)
        self.leaf = cuda.to_device(np.ascontiguousarray(leaf))


def _clock(tables: Any) -> int:
    """Return how often tables that can change were changed; 0 for those that cannot."""
    return getattr(tables, "clock", 0)


def _device(tables: Tables) -> tuple[Any, Any, Any]:
    """Return upper, child and leaf on the device, sent again if they changed since."""
    found = _sent.get(tables)
    if found is None or found.clock != _clock(tables):
        found = _sent[tables] = _DeviceArrays(tables)
    return found.upper, found.child, found.leaf


def translate(tables: Tables, vas: Any, words: Any) -> None:
    """Write the word of every address, uint64[n] here or on the device, to ``words``."""
    if not len(vas):
        return
    arrays = _device(tables)
    for at in range(0, len(vas), _MAX_WORDS):
        some = vas[at : at + _MAX_WORDS]
        _to(words[at : at + _MAX_WORDS], lambda out, some=some: _addresses(some, tables.levels, arrays, out))


def translate_range(tables: Tables, start: int, words: Any) -> None:
    """Write the words of consecutive pages from the canonical address ``start`` on to ``words``."""
    arrays = _device(tables)

    def pages(at: int, out: Any) -> None:
        va, npages = start + (at << 12), len(out)
        slots = ((va + (npages - 1 << 12)) >> 21) - (va >> 21) + 1
        pages_kernel[slots, THREADS](U64(va), U64(npages), U64(tables.levels), *arrays, out)

    for at in range(0, len(words), _MAX_WORDS):
        _to(words[at : at + _MAX_WORDS], lambda out, at=at: pages(at, out))


def table_runs(tables: Tables, rows: Words, vas: Words, above: Words, split_by: int) -> Words:
    """Return the runs of leaf tables, uint64[n, 4]; see :func:`gpuhmm.translation.cpu.table_runs`.

    Here a run also ends every 16 entries; who joins runs joins those as well.
    """
    leaf = _device(tables)[2]
    threads = len(rows) * _PARTS
    blocks = -(-threads // THREADS)
    on_device = [cuda.to_device(np.ascontiguousarray(array)) for array in (rows, vas, above)]
    counts = cuda.device_array(threads, dtype=np.uint64)
    count_kernel[blocks, THREADS](on_device[0], on_device[2], U64(split_by), leaf, counts)
    ends = np.cumsum(counts.copy_to_host())
    total = int(ends[-1])
    if not total:
        return np.empty((0, RUN_COLUMNS), dtype=np.uint64)
    places = np.concatenate((np.zeros(1, dtype=np.uint64), ends[:-1]))
    runs = cuda.device_array((total, RUN_COLUMNS), dtype=np.uint64)
    fill_kernel[blocks, THREADS](*on_device, U64(split_by), cuda.to_device(places), leaf, runs)
    made: Words = runs.copy_to_host()
    return made


def _addresses(vas: Any, levels: int, arrays: tuple[Any, Any, Any], out: Any) -> None:
    sent = cuda.to_device(vas) if isinstance(vas, np.ndarray) else _numba_array(vas)
    addresses_kernel[-(-len(vas) // THREADS), THREADS](sent, U64(levels), *arrays, out)


def _to(words: Any, write: Any) -> None:
    """Let ``write`` fill ``words``: in place on the device, else in a buffer there that is copied."""
    if isinstance(words, np.ndarray):
        buffer = cuda.device_array(len(words), dtype=np.uint64)
        write(buffer)
        buffer.copy_to_host(words)
    else:
        write(_numba_array(words))


def _numba_array(array: Any) -> Any:
    """Return a device array as one of numba, whoever made it."""
    return array if hasattr(array, "copy_to_host") else cuda.as_cuda_array(array)
