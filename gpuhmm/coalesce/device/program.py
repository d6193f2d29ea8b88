"""What a grid does, as flat arrays: kernels of blocks of warps of accesses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.access import ACCESS_NAMES, ACCESS_PREFETCH, ACCESS_WRITE
from gpuhmm.coalesce.device.config import WARP_LANES
from gpuhmm.mm.arguments import check_array

#: The access waits until all earlier ones of its warp are through: it needs what they loaded.
OP_WAITS = 1
#: The access waits until every warp of the block came here with nothing outstanding.
OP_BARRIER = 2

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Program:
    """Kernels one after the other, as offsets into offsets.

    Kernel ``k`` has the blocks ``[kernel_blocks[k], kernel_blocks[k + 1])``, in the order in which they are
    handed out, of ``kernel_threads[k]`` threads each, at most ``kernel_residency[k]`` of them on an SM at
    once (what registers and shared memory allow; 0 for no such limit).  A kernel starts when the one before
    it is done.  Block ``b`` has the warps ``[block_warps[b], block_warps[b + 1])``; warp ``w`` the accesses
    ``[warp_ops[w], warp_ops[w + 1])``; access ``o`` is of the kind ``op_access[o]``, waits as ``op_flags[o]``
    says (``OP_*``), and touches the pages ``pages[op_pages[o] : op_pages[o + 1]]``: numbers of
    :class:`~gpuhmm.coalesce.areas.DeviceAreas`, lanes that share a line of 128 bytes joined, in the
    order of lanes; a page stands as often as the access has lines in it.

    All offsets are int64 and begin at 0; ``pages`` is uint32, ``op_access`` and ``op_flags`` are uint8.
    """

    kernel_blocks: Offsets
    kernel_threads: Offsets
    kernel_residency: Offsets
    block_warps: Offsets
    warp_ops: Offsets
    op_pages: Offsets
    op_access: npt.NDArray[np.uint8]
    op_flags: npt.NDArray[np.uint8]
    pages: npt.NDArray[np.uint32]

    @property
    def kernels(self) -> int:
        """How many kernels there are."""
        return len(self.kernel_threads)

    @property
    def blocks(self) -> int:
        """How many blocks there are, of all kernels."""
        return len(self.block_warps) - 1

    @property
    def warps(self) -> int:
        """How many warps there are, of all blocks."""
        return len(self.warp_ops) - 1

    def check(self, npages: int) -> None:
        """TypeError or ValueError unless the arrays fit each other and pages are below ``npages``."""
        check_array("kernel_threads", self.kernel_threads, (None,), np.int64)
        check_array("kernel_residency", self.kernel_residency, (self.kernels,), np.int64)
        check_array("block_warps", self.block_warps, (None,), np.int64)
        check_array("warp_ops", self.warp_ops, (None,), np.int64)
        check_array("op_access", self.op_access, (None,), np.uint8)
        check_array("op_flags", self.op_flags, (len(self.op_access),), np.uint8)
        check_array("pages", self.pages, (None,), np.uint32)
        levels = (
            ("kernel_blocks", self.kernel_blocks, self.kernels, self.blocks),
            ("block_warps", self.block_warps, self.blocks, self.warps),
            ("warp_ops", self.warp_ops, self.warps, len(self.op_access)),
            ("op_pages", self.op_pages, len(self.op_access), len(self.pages)),
        )
        for name, offsets, length, past in levels:
            check_array(name, offsets, (length + 1,), np.int64)
            if offsets[0] != 0 or offsets[-1] != past or (offsets[1:] < offsets[:-1]).any():
                raise ValueError(f"{name} must rise from 0 to {past}")
        if len(self.pages) and int(self.pages.max()) >= npages:
            raise ValueError(f"pages must be below {npages} (got {int(self.pages.max())})")
        if (self.op_access >= len(ACCESS_NAMES)).any():
            raise ValueError(f"op_access must be below {len(ACCESS_NAMES)} (got {int(self.op_access.max())})")
        if (self.op_flags > (OP_WAITS | OP_BARRIER)).any():
            raise ValueError(f"op_flags must be OP_WAITS or OP_BARRIER (got {int(self.op_flags.max())})")
        if (self.kernel_threads < 1).any() or (self.kernel_residency < 0).any():
            raise ValueError("kernel_threads must be at least 1, kernel_residency at least 0")
        warps = np.diff(self.block_warps)
        most = -(-np.repeat(self.kernel_threads, np.diff(self.kernel_blocks)) // WARP_LANES)
        if (warps > most).any():
            block = int(np.flatnonzero(warps > most)[0])
            raise ValueError(
                f"block {block} must have at most {int(most[block])} warps, by its threads"
                f" (got {int(warps[block])})"
            )

    def touched(self, npages: int) -> npt.NDArray[np.bool_]:
        """Return which pages the program needs, bool[npages]; what is only prefetched is none."""
        return self._any(npages, self.op_access > ACCESS_PREFETCH)

    def prefetched(self, npages: int) -> npt.NDArray[np.bool_]:
        """Return which pages the program prefetches: bool[npages]."""
        return self._any(npages, self.op_access == ACCESS_PREFETCH)

    def written(self, npages: int) -> npt.NDArray[np.bool_]:
        """Return which pages the program writes, atomics included: bool[npages]."""
        return self._any(npages, self.op_access >= ACCESS_WRITE)

    def _any(self, npages: int, ops: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        found = np.zeros(npages, dtype=np.bool_)
        found[self.pages[np.repeat(ops, np.diff(self.op_pages))]] = True
        return found
