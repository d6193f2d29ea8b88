"""Calls recorded in a running kernel, with the page tables before and after: read as cases.

A recording shows the page-table entries that cover the range and the VMAs next to it.  It does not show
to whom a device-private page belongs; :func:`device_owners` says what is taken from the call itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.check.case import Case, Outcome, no_rows, sparse_entries
from gpuhmm.check.vectors import read_archive
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm import x86
from gpuhmm.mm.profile import V6_1, KernelProfile, kernel_profile
from gpuhmm.mm.tables import Words

#: What the owner of the first device-private page in the range is called here, and everybody else.
OWNER = 0xD0D0
STRANGER = 0x5757
_OWNER_ARGUMENT = (0, OWNER, STRANGER)

_WALK_PAGE_RANGE = 1


@dataclass(frozen=True)
class LoopFile:
    """One opened file of recordings."""

    path: Path
    arrays: dict[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.arrays["rc"])

    def faultless(self) -> Iterator[Case]:
        """Yield the calls that one walk without a fault or a wait answered: their tables say it all."""
        for index in range(len(self)):
            if np.array_equal(self.rows("calls", "kind", index), [_WALK_PAGE_RANGE]):
                yield self.case(index)

    def case(self, index: int) -> Case:
        """Return call ``index`` as a case whose record is the call's first try, without its faults."""
        arrays, profile = self.arrays, self.profile(index)
        pfns, pages = self._tables("pt_before", index)
        start, end = int(arrays["start"][index]), int(arrays["end"][index])
        words = self.rows("pfn", "in", index), self.rows("pfn", "first", index)
        owner = _OWNER_ARGUMENT[int(arrays["owner_mode"][index])]
        scenario = "/".join(str(arrays[name][index]) for name in ("scenario", "range", "pattern"))
        return Case(
            name=f"{self.path.name}[{index}] ({scenario})",
            kernel=profile,
            levels=self._levels(index),
            start=start,
            end=end,
            default_flags=int(arrays["default_flags"][index]),
            pfn_flags_mask=int(arrays["pfn_flags_mask"][index]),
            dev_private_owner=owner,
            invalidate_after=-1,
            zero_pfn=int(arrays["zero_pfn"][index]),
            huge_zero_pfn=int(arrays["huge_zero_pfn"][index]),
            highest_memmap_pfn=x86.MAX_PFN - 1,
            device_owners=device_owners(pages, words[1], owner, profile, self._levels(index)),
            vmas=self._vmas(index),
            shstk=self.shstk(index),
            table_pfns=pfns,
            table_entries=sparse_entries(pages),
            hmm_pfns_in=words[0],
            recorded=Outcome(ret=int(arrays["rc_first"][index]), walks=1, hmm_pfns=words[1]),
        )

    def profile(self, index: int) -> KernelProfile:
        """Return the kernel of call ``index``, built as its ``max_swapfiles`` says; v6.1 if none is named."""
        if "kernel" not in self.arrays:
            return V6_1
        release = np.broadcast_to(self.arrays["kernel"], len(self))[index]
        return _built_profile(f"v{release}", int(self.arrays["max_swapfiles"][index]))

    @property
    def has_walk_returns(self) -> bool:
        """True if it was recorded what each walk returned: not in files that name their kernel."""
        return "kernel" not in self.arrays

    def shstk(self, index: int) -> bool:
        """True if the CPU of call ``index`` has user shadow stacks."""
        return "shstk" in self.arrays and bool(self.arrays["shstk"][index])

    def _levels(self, index: int) -> int:
        return 5 if self.arrays["la57"][index] else 4

    def rows(self, group: str, name: str, index: int) -> npt.NDArray[Any]:
        """Return what the ragged array ``<group>_<name>`` holds of case ``index``."""
        offsets = self.arrays["pfn_off" if group == "pfn" else f"{group}_off"]
        return self.arrays[f"{group}_{name}"][offsets[index] : offsets[index + 1]]

    def _vmas(self, index: int) -> Words:
        columns = [self.rows("vma", name, index) for name in ("start", "end", "vm_flags", "order")]
        columns[3] = columns[3].astype(np.uint64) + np.uint64(12)
        return np.stack(columns, axis=1) if len(columns[0]) else no_rows(4)

    def _tables(self, group: str, index: int) -> tuple[Words, Words]:
        """Return the page tables of one call, root first."""
        levels = self._levels(index)
        root = int(self.arrays["pgd_phys"][index]) >> 12
        mm = AddressSpace(levels=levels, root_pfn=root, kernel=self.profile(index))
        rows = [self.rows(group, name, index).tolist() for name in ("level", "va", "val")]
        for level, va, value in sorted(zip(*rows, strict=True), key=lambda row: -row[0]):
            mm.set_entry(va, min(level, levels), value)
        pfns, pages = mm.tables()
        order = np.argsort(pfns != root, kind="stable")
        return pfns[order], pages[order]


@cache
def _built_profile(name: str, max_swapfiles: int) -> KernelProfile:
    """Return the kernel of that name whose config leaves so many types to swap files.

    Of configs with the same number the one that lacks fewest options, DEVICE_PRIVATE rather than
    MEMORY_FAILURE rather than MIGRATION, which every kernel with COMPACTION has.
    ValueError if there is none.
    """
    options = ("device_private", "memory_failure", "migration")
    for lacking in (lacks for count in range(4) for lacks in combinations(options, count)):
        profile = kernel_profile(name).with_config(**dict.fromkeys(lacking, False))
        if profile.max_swapfiles == max_swapfiles:
            return profile
    raise ValueError(f"max_swapfiles must be that of some config of {name} (got {max_swapfiles})")


def device_owners(tables: Words, hmm_pfns: Words, owner: int, kernel: KernelProfile, levels: int) -> Words:
    """Return uint64[n, 3]: each device-private page that the call gave to its caller, as the caller's.

    A recording does not tell the owners of device memory, so this fact is taken from the outcome; every
    other device-private page belongs to nobody.
    """
    device_types = (kernel.swp_device_write, kernel.swp_device_read)
    pfn_mask = (1 << kernel.swp_pfn_bits[levels - 4]) - 1
    private = [
        int(x86.swp_offset(entry)) & pfn_mask
        for entry in np.unique(tables)
        if not x86.entry_none(entry) and not x86.pte_present(entry) and x86.swp_type(entry) in device_types
    ]
    given = np.intersect1d(np.array(private, dtype=np.uint64), hmm_pfns & ~np.uint64(kernel.hmm_pfn_flags))
    return np.stack([given, given + np.uint64(1), np.full_like(given, owner)], axis=1)


def load(path: Path) -> LoopFile:
    """Open a file of recordings.  ValueError if it is none."""
    arrays = read_archive(path)
    if "pt_before_val" not in arrays or "calls_kind" not in arrays:
        raise ValueError(f"{path} must hold recorded driver loops")
    return LoopFile(path, arrays)
