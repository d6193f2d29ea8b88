"""The walk of plain pages in C, compiled here: how much of a gap to the speed of memory is numba's."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.tables import Words

SOURCE = Path(__file__).parents[2] / "benchmarks" / "plain_walk.c"
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")


def c_walk() -> Callable[[AddressSpace, int, Words], None]:
    """Return a walk as those of :data:`gpuhmm.bench.peers.PEERS`, of whole slots of 2 MiB.

    RuntimeError without its source, which only a checkout has, or without a compiler (``CC``, else cc).
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or not SOURCE.exists():
        raise RuntimeError("the walk in C needs a C compiler and a checkout with benchmarks/plain_walk.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "plain_walk.so"
        command = [compiler, *_FLAGS, str(SOURCE), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the walk in C does not compile: {done.stderr.strip()}")
        function = ctypes.CDLL(str(library)).plain_walk
    pointer, number = ctypes.c_void_p, ctypes.c_uint64
    function.argtypes = [pointer, pointer, number, pointer, number, number]
    function.restype = None
    threads = len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(threads)

    def walk(mm: AddressSpace, start: int, words: Words) -> None:
        tables = mm.page_tables
        state = (tables.child.ctypes.data, tables.leaf.ctypes.data, start, words.ctypes.data)
        slots = len(words) // 512
        bounds = [slots * i // threads for i in range(threads + 1)]
        list(pool.map(lambda i: function(*state, bounds[i], bounds[i + 1]), range(threads)))

    return walk
