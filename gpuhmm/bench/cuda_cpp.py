"""The streaming kernel over leaf tables once more, in CUDA C++: what numba's code is measured against.

It writes the words of plain pages and marks the slots in which a page is not plain, as
:func:`gpuhmm.kernels.cuda_stream.stream` does, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

#: One block of 128 threads for 512 pages, two pages an access.
SOURCE = r"""
typedef unsigned long long word;

__device__ __forceinline__ word word_of(word pte) {
    return ((pte & 0x000ffffffffff000ull) >> 12) | (1ull << 63) | ((pte & 2ull) << 61);
}

__device__ __forceinline__ bool plain(word pte, word granted, word highest) {
    return (pte & (granted | 0x200ull)) == granted && ((pte & 0x000ffffffffff000ull) >> 12) <= highest;
}

extern "C" __global__ void stream(
    const ulonglong2* __restrict__ entries, ulonglong2* __restrict__ words, word* __restrict__ marks,
    word granted, word highest
) {
    const size_t slot = (size_t)blockIdx.x * 256;
    for (unsigned pair = threadIdx.x; pair < 256; pair += 128) {
        const ulonglong2 ptes = entries[slot + pair];
        words[slot + pair] = make_ulonglong2(word_of(ptes.x), word_of(ptes.y));
        if (!(plain(ptes.x, granted, highest) && plain(ptes.y, granted, highest)))
            marks[blockIdx.x] = 1;
    }
}
"""

_THREADS = 128


def cuda_cpp_stream(entries: Any, words: Any, granted: int, highest_memmap_pfn: int) -> Callable[[], None]:
    """Return what streams device arrays of uint64, whole leaf tables, and waits for the end.

    RuntimeError without CuPy.
    """
    try:
        import cupy
    except ImportError:
        raise RuntimeError("the kernel in CUDA C++ needs CuPy: pip install 'gpuhmm[cuda13]'") from None
    kernel = cupy.RawKernel(SOURCE, "stream")
    slots = len(words) // 512
    marks = cupy.zeros(slots, dtype=np.uint64)
    source, target = cupy.asarray(entries), cupy.asarray(words)

    def run() -> None:
        arguments = (source, target, marks, np.uint64(granted), np.uint64(highest_memmap_pfn))
        kernel((slots,), (_THREADS,), arguments)
        cupy.cuda.get_current_stream().synchronize()

    return run
