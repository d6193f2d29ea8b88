"""The address space of a live process, read through /proc and rebuilt.

Source: Documentation/admin-guide/mm/pagemap.rst (v6.18).
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gpuhmm.capture.mapping import VM_MERGEABLE, Mapping, parse_maps, user_mappings
from gpuhmm.capture.record import Capture, LiveProcess
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.profile import NO_TYPE, KernelProfile
from gpuhmm.mm.running_kernel import given_kernel
from gpuhmm.mm.x86 import NO_PFN, ZERO_PFN
from gpuhmm.process.entries import AREA_PROT, IN_AREA, IS_KSM, IS_ZERO_PAGE, WRITE_RULE
from gpuhmm.process.identity import identify
from gpuhmm.process.pagemap import (
    KPF_KSM,
    KPF_THP,
    KPF_ZERO_PAGE,
    PM_FILE,
    PM_GUARD_REGION,
    PM_MMAP_EXCLUSIVE,
    PM_PFN,
    PM_PRESENT,
    PM_SWAP,
    PM_SWAP_OFFSET_SHIFT,
    Pagemap,
    Words,
    kpageflags,
    pfns_visible,
)
from gpuhmm.process.rebuild import rebuild
from gpuhmm.process.running import running_kernel
from gpuhmm.process.windows import (
    Indexes,
    Populated,
    Progress,
    find_populated,
    flat_slices,
    read_windows,
)

#: PFNs that we give out where the kernel hides its own: ZERO_PFN, that of the huge zero page, and the rest.
HUGE_ZERO_NUMBER = 1 << 19
FIRST_NUMBER = 1 << 20
FIRST_GIGANTIC_NUMBER = 1 << 38

#: PTE_MARKER_GUARD, the offset of a guard region's marker (include/linux/swapops.h, v6.13).
_MARKER_GUARD = np.uint64(4)
#: Slot 1 of swap file 0, as pagemap shows it.
_SLOT_1 = np.uint64(1) << PM_SWAP_OFFSET_SHIFT

_SLOTS = np.arange(512, dtype=np.uint64)


def read_process(
    pid: int,
    *,
    start: int = 0,
    end: int | None = None,
    kernel: str | KernelProfile | None = None,
    progress: Progress | None = None,
) -> Capture:
    """Read the page tables of process ``pid`` over ``[start, end)`` bytes and rebuild them.

    Everything is read through /proc; the process is neither stopped nor changed.  ``kernel`` says whose
    numbers of swap types pagemap shows and whose walk it is, None those of the kernel that runs
    (:func:`gpuhmm.process.running.running_kernel`).  ValueError for an unknown kernel, for an
    empty or misaligned range and for a process without user memory there, ProcessLookupError for
    one that is gone or ends meanwhile, PermissionError for one that may not be read.
    """
    begun = time.perf_counter()
    choice = running_kernel() if kernel is None else given_kernel(kernel)
    identity = identify(pid)
    with _plain_errors(pid), Pagemap(pid) as pagemap:
        user, in_kernel = user_mappings(parse_maps(_read(f"/proc/{pid}/smaps")))
        if not user:
            raise ProcessLookupError(f"process {pid} ended while it was read")
        end = user[-1].end if end is None else end
        chosen = _cut(user, start, end)
        if not chosen:
            raise ValueError(f"process {pid} has no mapping in [{start:#x}, {end:#x})")
        found = find_populated(pagemap, user, start, end)
        read = read_windows(pagemap, found.windows, progress)
        reading = _Reading(user, *read, real=pfns_visible(), kernel=choice.profile)
        after = parse_maps(_read(f"/proc/{pid}/maps"))
    changed = [m.header for m in user + in_kernel] != [m.header for m in after]
    reading.classify(found)
    first, past = reading.slices(chosen)
    present = reading.words.reshape(-1).view(np.int64)
    resident = [int((present[a:b] < 0).sum()) for a, b in zip(first.tolist(), past.tolist(), strict=True)]
    with_swap = reading.windows_with_swap()
    space = reading.space()
    return Capture(
        space=space,
        start=start,
        end=end,
        mappings=chosen,
        resident=resident,
        windows=reading.windows,
        windows_with_swap=with_swap,
        pfns_real=reading.real,
        write_rule=WRITE_RULE,
        seconds=time.perf_counter() - begun,
        origin={"kind": "process", "pid": pid, "command": identity.command, "host": platform.node()},
        notes=_notes(found, reading),
        kernel_why=choice.why,
        process=LiveProcess(
            identity,
            kernel_release=platform.release(),
            left_out=[mapping.name for mapping in in_kernel],
            changed=changed or bool(reading.lost),
            pagemap_scan=found.scanned,
            kpageflags=reading.used_kpageflags,
        ),
    )


class _Reading:
    """The words of pagemap, and what is worked out from them until they become entries."""

    def __init__(
        self,
        mappings: list[Mapping],
        windows: Indexes,
        words: Words,
        *,
        real: bool,
        kernel: KernelProfile,
    ) -> None:
        self.kernel = kernel
        self.mappings = mappings
        self.windows = windows
        self.words = words
        self.real = real
        self.classes = np.zeros(words.shape, dtype=np.uint8)
        self.huge = np.zeros(len(windows), dtype=np.bool_)
        self.hugetlb = np.zeros(len(windows), dtype=np.uint8)
        self.zero_pfn = ZERO_PFN
        self.huge_zero_pfn = NO_PFN
        self.used_kpageflags = False
        self.lost = 0  # huge pages that were gone when they were read

    def slices(self, mappings: list[Mapping]) -> tuple[Indexes, Indexes]:
        """Return which pages lie in each mapping, see :func:`flat_slices`."""
        bounds = np.array([(m.start, m.end) for m in mappings], dtype=np.int64).reshape(-1, 2)
        return flat_slices(self.windows, bounds[:, 0], bounds[:, 1])

    def classify(self, found: Populated) -> None:
        """Work out the class of every page and what maps every window; number PFNs that are hidden."""
        flat = self.classes.reshape(-1)
        smaps_huge = np.zeros(len(flat), dtype=np.bool_) if not found.scanned else None
        first, past = self.slices(self.mappings)
        for mapping, a, b in zip(self.mappings, first.tolist(), past.tolist(), strict=True):
            if a == b:
                continue
            flat[a:b] = mapping.vm_flags & AREA_PROT | IN_AREA
            if mapping.page_shift > 12:
                self.hugetlb[a // 512 : -(-b // 512)] = mapping.page_shift
            if mapping.vm_flags & VM_MERGEABLE and self.real:
                self._mark_ksm(a, b)
            if smaps_huge is not None and mapping.pmd_mapped:
                smaps_huge[a:b] = True
        if smaps_huge is None:
            self.huge = np.isin(self.windows, found.huge, assume_unique=True)
        elif self.real:
            self._infer_huge(smaps_huge.reshape(-1, 512)[:, 0])
        self.huge &= self.hugetlb == 0
        self._check_huge()
        if smaps_huge is None:
            self._mark_zero(found.zero)
        elif self.real:
            self._infer_zero()
        if not self.real:
            self._number()

    def _mark_ksm(self, first: int, past: int) -> None:
        words = self.words.reshape(-1)[first:past]
        alone = (words & (PM_PRESENT | PM_FILE | PM_MMAP_EXCLUSIVE)) == PM_PRESENT | PM_MMAP_EXCLUSIVE
        flags = self._kpageflags(words[alone] & PM_PFN)
        if flags is not None:
            merged = np.flatnonzero(alone)[(flags & KPF_KSM) != 0]
            self.classes.reshape(-1)[first:past][merged] |= IS_KSM

    def _check_huge(self) -> None:
        """Keep as huge only what still looks so: the process may have changed since it was scanned."""
        rows = np.flatnonzero(self.huge)
        for row in rows.tolist():
            words, classes = self.words[row], self.classes[row]
            whole = bool((words & PM_PRESENT).all()) and bool((classes == classes[0]).all())
            if whole and self.real:
                pfns = words & PM_PFN
                whole = not int(pfns[0]) & 511 and bool((pfns == pfns[0] + _SLOTS).all())
            self.huge[row] = whole
        self.lost = len(rows) - int(self.huge.sum())

    def _mark_zero(self, regions: Indexes) -> None:
        """Mark the pages that PAGEMAP_SCAN calls zero pages, and take their PFNs."""
        flat, words = self.classes.reshape(-1), self.words.reshape(-1)
        first, past = flat_slices(self.windows, regions[:, 0], regions[:, 1])
        spans = [(a, b) for a, b in zip(first.tolist(), past.tolist(), strict=True) if a < b]
        for a, _ in spans:
            if self.huge[a // 512]:
                if self.real and self.huge_zero_pfn == NO_PFN:
                    self.huge_zero_pfn = int(words[a // 512 * 512] & PM_PFN)
            elif self.real and self.zero_pfn == ZERO_PFN and words[a] & PM_PRESENT:
                self.zero_pfn = int(words[a] & PM_PFN)
        for a, b in spans:
            if not self.real:
                flat[a:b] |= IS_ZERO_PAGE
            elif self.huge[a // 512]:
                heads = self.words[a // 512 : b // 512, 0] & PM_PFN
                self.classes[a // 512 : b // 512][heads == np.uint64(self.huge_zero_pfn)] |= IS_ZERO_PAGE
            else:
                same = (words[a:b] & PM_PFN) == np.uint64(self.zero_pfn)
                flat[a:b][same] |= IS_ZERO_PAGE

    def _infer_huge(self, allowed: npt.NDArray[np.bool_]) -> None:
        """Without PAGEMAP_SCAN: 512 PFNs in a row from a THP's first page, where smaps counts huge pages."""
        heads = self.words[:, 0] & PM_PFN
        rows = np.flatnonzero(allowed & ((heads & np.uint64(511)) == 0) & (heads != 0))
        flags = self._kpageflags(heads[rows])
        if flags is not None:
            self.huge[rows[(flags & KPF_THP) != 0]] = True

    def _infer_zero(self) -> None:
        """Without PAGEMAP_SCAN: what kpageflags calls the zero page."""
        flat, words = self.classes.reshape(-1), self.words.reshape(-1)
        candidates = np.flatnonzero((words & (PM_PRESENT | PM_FILE | PM_MMAP_EXCLUSIVE)) == PM_PRESENT)
        flags = self._kpageflags(words[candidates] & PM_PFN)
        if flags is None:
            return
        zero = candidates[(flags & KPF_ZERO_PAGE) != 0]
        huge = self.huge[zero // 512]
        flat[zero] |= IS_ZERO_PAGE
        if not huge.all():
            self.zero_pfn = int(words[zero[~huge][0]] & PM_PFN)
        if huge.any():
            self.huge_zero_pfn = int(words[zero[huge][0]] & PM_PFN)

    def _kpageflags(self, pfns: Words) -> Words | None:
        flags = kpageflags(pfns)
        self.used_kpageflags |= flags is not None
        return flags

    def _number(self) -> None:
        """Give every present page a PFN of ours, ascending with its address; zero pages have one.

        What is not present keeps its kind if it is a guard region; else it counts as slot 1 of the first
        swap file, since slot 0 holds the file's header and stands for no type at all from v7.0 on.
        """
        swapped = (self.words & (PM_PRESENT | PM_SWAP)) == PM_SWAP
        self.words[swapped] = self.words[swapped] & ~PM_PFN | _SLOT_1
        if self.kernel.swp_pte_marker != NO_TYPE:
            guard = swapped & ((self.words & PM_GUARD_REGION) != 0)
            shown = _MARKER_GUARD << PM_SWAP_OFFSET_SHIFT | np.uint64(self.kernel.swp_pte_marker)
            self.words[guard] = self.words[guard] & ~PM_PFN | shown
        base = FIRST_NUMBER + np.arange(len(self.windows)) * 512
        base = np.where(self.hugetlb == 30, FIRST_GIGANTIC_NUMBER + (self.windows << 9 & (1 << 37) - 1), base)
        for row, first in enumerate(base.tolist()):
            words = self.words[row]
            zero = (self.classes[row] & IS_ZERO_PAGE) != 0
            if self.huge[row] and zero[0]:
                self.huge_zero_pfn = first = HUGE_ZERO_NUMBER
                zero = np.zeros(512, dtype=np.bool_)
            numbers = np.where(zero, np.uint64(ZERO_PFN), np.uint64(first) + _SLOTS)
            present = (words & PM_PRESENT) != 0
            words[present] = words[present] & ~PM_PFN | numbers[present]

    def windows_with_swap(self) -> Indexes:
        """Return the windows in which something is swapped out, or called so."""
        swapped = (self.words & (PM_PRESENT | PM_SWAP)) == PM_SWAP
        return self.windows[swapped.any(axis=1)]

    def space(self) -> AddressSpace:
        """Return the address space; the words are used up."""
        levels = 5 if any(mapping.end > 1 << 47 for mapping in self.mappings) else 4
        made = rebuild(levels, self.windows, self.words, self.classes, self.huge, self.hugetlb, self.kernel)
        return AddressSpace.from_tables(
            levels=levels,
            root_pfn=made.root_pfn,
            table_pfns=made.table_pfns,
            tables=made.tables,
            vmas=[mapping.vma() for mapping in self.mappings],
            kernel=self.kernel,
            zero_pfn=self.zero_pfn,
            huge_zero_pfn=self.huge_zero_pfn,
        )


def _cut(mappings: list[Mapping], start: int, end: int) -> list[Mapping]:
    if start % 4096 or end % 4096 or not 0 <= start < end <= 1 << 57:
        raise ValueError(
            f"start and end must be multiples of 4096 with start < end <= 2^57 (got {start:#x}, {end:#x})"
        )
    inside = [m for m in mappings if m.start < end and start < m.end]
    return [replace(m, start=max(m.start, start), end=min(m.end, end)) for m in inside]


def _notes(found: Populated, reading: _Reading) -> list[str]:
    notes = []
    if not reading.real:
        notes.append(
            "the kernel hides PFNs from us (CAP_SYS_ADMIN): they are numbered in the order of addresses, "
            "so that contiguity means nothing, and what is not present counts as swapped out unless it is a "
            "guard region"
        )
    if not found.scanned:
        if reading.real and reading.used_kpageflags:
            notes.append(
                "without PAGEMAP_SCAN (Linux 6.7) a 2 MiB leaf is inferred: 512 PFNs in a row from a huge "
                "page of kpageflags, in a mapping where smaps counts such leaves"
            )
        else:
            notes.append(
                "without PAGEMAP_SCAN (Linux 6.7) and kpageflags no 2 MiB leaf can be told: all are 4 KiB"
            )
    if found.skipped:
        notes.append(
            f"{found.skipped} mappings that smaps calls empty were not read; zero pages in them go unseen"
        )
    return notes


def _read(path: str) -> str:
    with open(path, "rb") as file:
        return file.read().decode(errors="backslashreplace")


@contextmanager
def _plain_errors(pid: int) -> Iterator[None]:
    """Say in words what a failure of /proc means."""
    try:
        yield
    except PermissionError:
        raise PermissionError(
            f"process {pid} may not be read: it belongs to another user or is protected; "
            "run as its user, or with CAP_SYS_PTRACE"
        ) from None
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"process {pid} ended while it was read") from None
