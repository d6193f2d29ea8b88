"""The memory of a paused Linux 6.1 guest: its page tables in tests/data, all of it where it was unpacked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from recorded import DATA

import gpuhmm

CR3 = 0x2B33000
SIZE = 256 << 20


@dataclass(frozen=True)
class Guest:
    """What was recorded from inside the kernel at the moment of the dump."""

    start: int
    end: int
    zero_pfn: int
    huge_zero_pfn: int
    vmas: list[gpuhmm.Vma]
    entries: list[tuple[int, int, int]]  # address, level, raw value
    hmm_pfns: np.ndarray
    table_pfns: np.ndarray
    tables: np.ndarray


def guest() -> Guest:
    """Return the record, with the page-table pages of the dump."""
    with np.load(DATA / "guest-dump-6.1.npz") as file:
        found = dict(file)
    columns = (found[f"vma_{name}"].tolist() for name in ("start", "end", "vm_flags", "order"))
    # The kernel's top level is 5 whatever the number of levels; here it is 4.
    levels = np.where(found["pt_level"] == 5, 4, found["pt_level"])
    return Guest(
        int(found["start"]),
        int(found["end"]),
        int(found["zero_pfn"]),
        int(found["huge_zero_pfn"]),
        [
            gpuhmm.Vma(start, end, flags, 12 + order)
            for start, end, flags, order in zip(*columns, strict=True)
        ],
        list(zip(found["pt_va"].tolist(), levels.tolist(), found["pt_val"].tolist(), strict=True)),
        found["hmm_pfns"],
        found["table_pfns"],
        found["tables"],
    )


def write_image(record: Guest, path: Path) -> Path:
    """Write a sparse raw image in which only the page-table pages are not zeros."""
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for pfn, page in zip(record.table_pfns.tolist(), record.tables, strict=True):
            file.seek(pfn << 12)
            file.write(page.astype("<u8").tobytes())
    return path


def write_maps(record: Guest, path: Path) -> Path:
    """Write the recorded areas in the form of /proc/PID/maps."""
    with open(path, "w") as file:
        for vma in record.vmas:
            perms = "".join(
                letter if vma.flags & bit else "-" for letter, bit in zip("rwx", (1, 2, 4), strict=True)
            )
            shared = "s" if vma.flags & 8 else "p"
            file.write(f"{vma.start:x}-{vma.end:x} {perms}{shared} 00000000 00:00 0\n")
    return path
