"""A device that reads, writes and moves the memory of a process.

Source: lib/test_hmm.c (v6.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from errno import EBUSY, EINVAL, ENOENT, EPERM
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm.backends import resolve_backend
from gpuhmm.hmm.loop import HMM_RANGE_DEFAULT_TIMEOUT_MS
from gpuhmm.memory.migrate_device import make_device_exclusive_range, migrate_to_device, migrate_to_ram
from gpuhmm.memory.pages.page import SECTION_MASK, SECTION_SHIFT
from gpuhmm.memory.pages.rmap import rmap_walk
from gpuhmm.mirror.coherence import CoherentPageTable, MirrorCounters
from gpuhmm.mirror.page_table import DPT_ATOMIC, DPT_PFN, DPT_VALID, DPT_WRITE, DevicePageTable
from gpuhmm.mirror.protection import dmirror_mkentry
from gpuhmm.mm.arguments import check_array
from gpuhmm.mm.entry import PROTNONE, RW, P, pfn_of, swp_pfn, swp_type_of
from gpuhmm.mm.tables import Words
from gpuhmm.mm.vma import VM_READ
from gpuhmm.mm.x86 import NO_PFN

if TYPE_CHECKING:
    from gpuhmm.memory.pages.device import DeviceMemory
    from gpuhmm.memory.space import AddressSpace

#: Pages that lib/test_hmm.c asks for in one call.
RANGE_PAGES = 64


@dataclass
class MirrorResult:
    """What a command returned (``struct hmm_dmirror_cmd``).

    ``ret`` is 0 or a negative errno, ``cpages`` the pages that were copied, ``faults`` how often the device
    had to ask the driver for the rest of the range, and ``data`` what was read or seen, None on an error.
    """

    ret: int = 0
    cpages: int = 0
    faults: int = 0
    data: npt.NDArray[np.uint64] | npt.NDArray[np.uint8] | None = None


class DeviceMirror:
    """A device that shares the address space ``mm`` (``struct dmirror``).

    ``device`` is its memory, whose owner is the ``dev_private_owner`` of every walk.  ``range_pages`` are
    the pages of one ``hmm_range_fault()``, 64 in lib/test_hmm.c; ``timeout_ms`` bounds the retries of each.
    ``backend`` is that of :func:`gpuhmm.hmm_range_fault`.  ValueError for sizes and times that are not
    positive, and for a device of another machine.

    Commands take bytes ``[start, end)`` and return a :class:`MirrorResult`; -EINVAL for an empty or
    unaligned range, RuntimeError after :meth:`close`.  They may be called from any thread, but never from
    a notifier's callback.  A page's data is one 64-bit word, as everywhere in :mod:`gpuhmm.memory`.
    """

    def __init__(
        self,
        mm: AddressSpace,
        device: DeviceMemory,
        *,
        backend: str = "auto",
        range_pages: int = RANGE_PAGES,
        timeout_ms: float = HMM_RANGE_DEFAULT_TIMEOUT_MS,
    ) -> None:
        if range_pages < 1:
            raise ValueError(f"range_pages must be positive (got {range_pages})")
        if not timeout_ms > 0:
            raise ValueError(f"timeout_ms must be positive (got {timeout_ms})")
        if device not in mm.memory.devices:
            raise ValueError("the memory of the device must be of the machine that the space is on")
        self.mm = mm
        self.device = device
        self._table = CoherentPageTable(mm, device, resolve_backend(backend), range_pages, timeout_ms)
        self._open = True

    @property
    def counters(self) -> MirrorCounters:
        """What the mirror did so far."""
        return self._table.counters

    @property
    def page_table(self) -> DevicePageTable:
        """What the device may reach at the moment."""
        return self._table.entries

    def close(self) -> None:
        """Stop mirroring (dmirror_fops_release).  RuntimeError if that was done already."""
        self._check_open()
        self._open = False
        self._table.notifier.remove()
        with self._table.mutex:
            self._table.entries.erase(0, self.mm.task_size)

    # -- what the device does -----------------------------------------------------------------

    def read(self, start: int, end: int) -> MirrorResult:
        """Let the device read every page; ``data`` is uint64[npages] (dmirror_read)."""
        if self._refuses(start, end):
            return MirrorResult(-EINVAL)
        result, data = MirrorResult(), np.zeros((end - start) >> 12, dtype=np.uint64)
        while True:
            result.cpages += self._do_read(start + (result.cpages << 12), end, data[result.cpages :])
            if result.cpages == len(data):
                result.data = data
                return result
            result.ret = self._table.fault(start + (result.cpages << 12), end, write=False)
            if result.ret:
                return result
            result.faults += 1

    def write(self, start: int, data: Words) -> MirrorResult:
        """Let the device write ``data``, uint64[npages], a word a page from ``start`` on (dmirror_write)."""
        check_array("data", data, (None,))
        end = start + (len(data) << 12)
        if self._refuses(start, end):
            return MirrorResult(-EINVAL)
        result = MirrorResult()
        while True:
            result.cpages += self._do_write(start + (result.cpages << 12), end, data[result.cpages :])
            if result.cpages == len(data):
                return result
            result.ret = self._table.fault(start + (result.cpages << 12), end, write=True)
            if result.ret:
                return result
            result.faults += 1

    def snapshot(self, start: int, end: int) -> MirrorResult:
        """Say what the page table holds without faulting: ``data`` is uint8[npages] of HMM_DMIRROR_PROT_*.

        Source: lib/test_hmm.c:dmirror_snapshot (v6.1).
        """
        if self._refuses(start, end):
            return MirrorResult(-EINVAL)
        result, seen = MirrorResult(), np.zeros((end - start) >> 12, dtype=np.uint8)
        for low, high in self._table.ranges(start, end):
            here = seen[(low - start) >> 12 : (high - start) >> 12]

            def accept(words: Words, here: npt.NDArray[np.uint8] = here) -> int:
                here[:] = dmirror_mkentry(self.mm, self.device, words)
                return 0

            result.ret = self._table.snapshot(low, high, accept)
            if result.ret:
                return result
            result.cpages += len(here)
        result.data = seen
        return result

    # -- moving pages -------------------------------------------------------------------------

    def migrate_to_device(self, start: int, end: int) -> MirrorResult:
        """Move pages of the system to the device and let it read them: ``data`` is uint64[npages].

        Pages that are on the device already stay.  -EINVAL over a gap or an area without VM_READ, -ENOENT
        if the device may not reach a page afterwards; pages before it stay moved.

        Source: lib/test_hmm.c:dmirror_migrate_to_device (v6.1).
        """
        if self._refuses(start, end):
            return MirrorResult(-EINVAL)
        low = start
        while low < end:
            # Held over both steps, as the kernel holds the locks of the pages: nobody moves them in between.
            with self.mm.mmap_lock.write():
                high = self._piece_end(low, end)
                if high is None:
                    return MirrorResult(-EINVAL)
                with self._table.mutex:
                    before = self.page_table.load(low, high)
                with self._table.moving_to_device():
                    moved = migrate_to_device(self.mm, low, high, self.device)
                if isinstance(moved, int):
                    return MirrorResult(moved)
                with self._table.mutex:
                    for page in np.flatnonzero(moved | (before != 0)).tolist():
                        self._map_again(low + (page << 12), None if moved[page] else before[page])
            low = high
        return self._read_mapped(start, end)

    def migrate_to_system(self, start: int, end: int) -> MirrorResult:
        """Move pages of the device back to the system; ``cpages`` is how many came.

        -EINVAL over a gap or an area without VM_READ.  Source: lib/test_hmm.c:dmirror_migrate_to_system
        (v6.1).
        """
        if self._refuses(start, end):
            return MirrorResult(-EINVAL)
        result, low = MirrorResult(), start
        while low < end:
            with self.mm.mmap_lock.write():
                high = self._piece_end(low, end)
                if high is None:
                    return MirrorResult(-EINVAL, result.cpages)
                came = migrate_to_ram(self.mm, low, high, self.device)
            result.cpages += int(np.count_nonzero(came))
            low = high
        return result

    def release_device(self) -> int:
        """Bring every page of the device back to the system, whoever owns it; return how many came.

        Source: lib/test_hmm.c:dmirror_device_evict_chunk, mm/migrate_device.c:migrate_device_range (v6.1).
        """
        self._check_open()
        device, came = self.device, 0
        with self.mm.mmap_lock.write():
            for pfn in self._used_pfns():
                for mm, _, va in list(rmap_walk(self.mm.memory, pfn)):
                    came += int(migrate_to_ram(mm, va, va + 4096, device)[0])
        return came

    def make_exclusive(self, start: int, end: int) -> MirrorResult:
        """Take pages from the CPU for atomic operations and let the device read them.

        ``data`` is uint64[npages].  -EBUSY if a page cannot be had; pages before it stay exclusive.

        Source: lib/test_hmm.c:dmirror_exclusive, dmirror_atomic_map (v6.1).
        """
        if self._refuses(start, end):
            return MirrorResult(-EINVAL)
        for low, high in self._table.ranges(start, end):
            with self.mm.mmap_lock.write():
                pfns = make_device_exclusive_range(self.mm, low, high, 0)
                had = pfns != np.uint64(NO_PFN)
                with self._table.mutex:
                    for page in np.flatnonzero(had).tolist():
                        self._table.store(low + (page << 12), pfns[page : page + 1] | DPT_ATOMIC)
            if not had.all():
                return MirrorResult(-EBUSY)
        return self._read_mapped(start, end)

    def check_exclusive(self, start: int, end: int) -> int:
        """Return 0 if the device has none of the pages exclusively, else -EPERM (dmirror_check_atomic)."""
        if self._refuses(start, end):
            return -EINVAL
        with self._table.mutex:
            return -EPERM if (self.page_table.load(start, end) & DPT_ATOMIC).any() else 0

    def _used_pfns(self) -> list[int]:
        """Return the PFNs of the device that somebody has."""
        used: list[int] = []
        pfn = self.device.first_pfn
        for section, where in self.mm.memory.pages.runs(pfn, self.device.npages):
            used += (np.flatnonzero(section.refcount[where]) + pfn).tolist()
            pfn += where.stop - where.start
        return used

    def _piece_end(self, low: int, end: int) -> int | None:
        """Return where a migration from ``low`` on must end: range size and area; None outside of areas."""
        vma = self.mm.vmas.lookup(low)
        if vma is None or not vma.flags & VM_READ:
            return None
        return min(end, low + (self._table.range_pages << 12), vma.end)

    def _map_again(self, va: int, before: np.uint64 | None) -> None:
        """Map the page that the CPU page table names now: one that came to the device, or did not move.

        ``before`` is the device's entry of a page that did not come; it is mapped again only if it is still
        the same.  Source: lib/test_hmm.c:dmirror_migrate_finalize_and_map (v6.1).
        """
        entry = self._granted(va)
        if entry is None:
            return
        if before is not None:
            if (entry ^ before) & (DPT_PFN | DPT_ATOMIC):
                return
            entry &= before
        self._table.store(va, np.array([entry]))

    def _granted(self, va: int) -> np.uint64 | None:
        """Return the entry that the CPU page table allows the device at ``va``, None if it has to ask."""
        pte, kernel = self.mm.entry(va, 1), self.mm.kernel
        if pte & P:
            write = DPT_WRITE if pte & RW else np.uint64(0)
            return np.uint64(pfn_of(pte)) | write
        bits = {
            kernel.swp_device_write: DPT_WRITE,
            kernel.swp_device_read: np.uint64(0),
            kernel.swp_device_exclusive_write: DPT_ATOMIC,
            kernel.swp_device_exclusive_read: DPT_ATOMIC,
        }.get(swp_type_of(pte))
        if bits is None or pte & PROTNONE:
            return None
        return np.uint64(swp_pfn(self.mm, pte)) | bits

    def _read_mapped(self, start: int, end: int) -> MirrorResult:
        """Read what is in the device page table; -ENOENT at the first page that is not."""
        data = np.zeros((end - start) >> 12, dtype=np.uint64)
        cpages = self._do_read(start, end, data)
        if cpages < len(data):
            return MirrorResult(-ENOENT, cpages)
        return MirrorResult(0, cpages, 0, data)

    # -- the data of pages --------------------------------------------------------------------

    def _do_read(self, start: int, end: int, data: Words) -> int:
        """Copy pages up to the first that the device may not read; return how many (dmirror_do_read)."""
        with self._table.mutex:
            entries = self.page_table.load(start, end)
            count = _leading((entries & DPT_VALID) != 0)
            for places, content, frames in self._contents(entries[:count]):
                data[places] = content[frames]
        return count

    def _do_write(self, start: int, end: int, data: Words) -> int:
        """Store to pages up to the first that the device may not write; return how many.

        Source: lib/test_hmm.c:dmirror_do_write (v6.1).
        """
        with self._table.mutex:
            entries = self.page_table.load(start, end)
            count = _leading((entries & DPT_WRITE) != 0)
            for places, content, frames in self._contents(entries[:count]):
                content[frames] = data[places]
        return count

    def _contents(self, entries: Words) -> Iterator[tuple[npt.NDArray[np.intp], Words, Words]]:
        """Yield for each section of memory: the places in ``entries``, its words, and which of them."""
        pfns = entries & DPT_PFN
        sections = pfns >> np.uint64(SECTION_SHIFT)
        for section in np.unique(sections):
            places = np.flatnonzero(sections == section)
            content = self.mm.memory.pages.section(int(section) << SECTION_SHIFT).content
            yield places, content, pfns[places] & np.uint64(SECTION_MASK)

    def _refuses(self, start: int, end: int) -> bool:
        """True for a range that the driver does not take (dmirror_fops_unlocked_ioctl)."""
        self._check_open()
        return bool((start | end) & 4095) or not 0 <= start < end

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeError("a mirror must not be used after it was closed")


def _leading(flags: npt.NDArray[np.bool_]) -> int:
    """Return how many elements come before the first that is False."""
    return len(flags) if flags.all() else int(flags.argmin())
