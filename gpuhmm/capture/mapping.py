"""The mappings of a process: /proc/PID/maps and smaps as records.

Source: fs/proc/task_mmu.c:show_map_vma, show_smap_vma_flags (v6.18).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gpuhmm.mm.vma import (
    VM_EXEC,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_IO,
    VM_MIXEDMAP,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    Vma,
)

#: KSM may merge pages of the area (include/linux/mm.h).
VM_MERGEABLE = 0x8000_0000

#: Where the kernel's half of the addresses begins; [vsyscall] lies there.
KERNEL_HALF = 1 << 63

_VM_FLAG_NAMES = {
    "rd": VM_READ,
    "wr": VM_WRITE,
    "ex": VM_EXEC,
    "sh": VM_SHARED,
    "pf": VM_PFNMAP,
    "io": VM_IO,
    "ht": VM_HUGETLB,
    "mm": VM_MIXEDMAP,
    "hg": VM_HUGEPAGE,
    "nh": VM_NOHUGEPAGE,
    "mg": VM_MERGEABLE,
}

_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) \S+ \d+ *(.*)")


@dataclass(frozen=True)
class Mapping:
    """One area of a process: ``[start, end)`` and ``offset`` in bytes, ``perms`` as in maps (``rw-p``).

    ``vm_flags`` holds the VM_* bits that matter here, ``page_shift`` is 21 or 30 in a hugetlb area,
    else 12.  ``rss``, ``swap`` and ``pmd_mapped`` are bytes, as smaps counts them.
    """

    start: int
    end: int
    perms: str
    offset: int
    name: str
    vm_flags: int = 0
    page_shift: int = 12
    rss: int = 0
    swap: int = 0
    pmd_mapped: int = 0

    @property
    def npages(self) -> int:
        """Pages of 4 KiB."""
        return (self.end - self.start) >> 12

    @property
    def rejected(self) -> bool:
        """True where a walk gives ERROR for every page (mm/hmm.c:hmm_vma_walk_test)."""
        return bool(self.vm_flags & (VM_IO | VM_PFNMAP)) or not self.vm_flags & VM_READ

    @property
    def header(self) -> tuple[int, int, str, int, str]:
        """What maps says of it, to compare two readings."""
        return self.start, self.end, self.perms, self.offset, self.name

    def vma(self) -> Vma:
        """Return the area as the walk knows it."""
        return Vma(self.start, self.end, self.vm_flags, self.page_shift)


def parse_maps(text: str) -> list[Mapping]:
    """Return the mappings of a maps or smaps file, in its order; flags follow perms in maps alone."""
    found = []
    for header, fields in _blocks(text):
        start, end, offset = int(header[1], 16), int(header[2], 16), int(header[4], 16)
        flags = _vm_flags(header[3], fields.get("VmFlags"))
        shift = 12
        if flags & VM_HUGETLB:
            shift = _bytes(fields.get("KernelPageSize", "")).bit_length() - 1
        if shift not in (12, 21, 30):
            shift = 12
        found.append(
            Mapping(
                start,
                end,
                header[3],
                offset,
                header[5],
                flags,
                shift,
                rss=_bytes(fields.get("Rss", "")),
                swap=_bytes(fields.get("Swap", "")),
                pmd_mapped=sum(
                    _bytes(fields.get(key, ""))
                    for key in ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")
                ),
            )
        )
    return found


def _blocks(text: str) -> Iterator[tuple[re.Match[str], dict[str, str]]]:
    header = None
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        match = _HEADER.fullmatch(line)
        if match is None:
            key, _, value = line.partition(":")
            fields[key] = value
            continue
        if header is not None:
            yield header, fields
        header, fields = match, {}
    if header is not None:
        yield header, fields


def _vm_flags(perms: str, names: str | None) -> int:
    if names is not None:
        return sum(_VM_FLAG_NAMES.get(name, 0) for name in names.split())
    letters = {"r": VM_READ, "w": VM_WRITE, "x": VM_EXEC, "s": VM_SHARED}
    return sum(letters.get(letter, 0) for letter in perms)


def _bytes(value: str) -> int:
    number = value.split()
    return int(number[0]) << 10 if number else 0


def user_mappings(found: list[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """Return the mappings of the user half, disjoint, and those of the kernel half.

    smaps is not read in one piece: an area that grew meanwhile may reach into the next one, which is
    then cut, or dropped where its page size does not allow a cut.
    """
    kernel = [mapping for mapping in found if mapping.end > KERNEL_HALF]
    user: list[Mapping] = []
    top = 0
    for mapping in sorted((m for m in found if m.end <= KERNEL_HALF), key=lambda m: (m.start, m.end)):
        start = max(mapping.start, top)
        if start < mapping.end and not start % (1 << mapping.page_shift):
            user.append(mapping if start == mapping.start else replace(mapping, start=start))
            top = mapping.end
    return user, kernel
