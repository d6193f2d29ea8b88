"""A dump as a capture: what ``gpuhmm walk``, ``capture`` and ``map`` make of it, as of a live process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpuhmm.capture.from_space import capture_of_space, mapping_of
from gpuhmm.capture.mapping import Mapping, parse_maps, user_mappings
from gpuhmm.capture.record import Capture
from gpuhmm.dump.load import load_tables
from gpuhmm.dump.raw_tables import RawTables
from gpuhmm.dump.release import release_of
from gpuhmm.dump.space import address_space, leaves_outside
from gpuhmm.dump.zero_pages import find_zero_pages
from gpuhmm.image import MemorySource, as_source, open_image
from gpuhmm.mm.profile import KernelProfile
from gpuhmm.mm.running_kernel import KernelChoice, choose_kernel, given_kernel
from gpuhmm.mm.vma import Vma
from gpuhmm.mm.x86 import NO_PFN, ZERO_PFN


def read_dump(
    source: Any,
    cr3: int | None = None,
    *,
    levels: int | None = None,
    format: str = "auto",
    maps: str | os.PathLike[str] | None = None,
    vmas: Iterable[Vma] | None = None,
    kernel: str | KernelProfile | None = None,
    zero_pfn: int | None = None,
    huge_zero_pfn: int | None = None,
    start: int = 0,
    end: int | None = None,
) -> Capture:
    """Read the page tables below ``cr3`` out of a memory dump.

    ``source`` is a path or what :func:`gpuhmm.image.as_source` takes.  Mappings come from ``maps``, a file in
    the form of /proc/PID/maps or smaps, or from ``vmas``, or are worked out from the entries.  ``kernel``
    says whose tables they are; None takes the release that the memory says
    (:func:`gpuhmm.dump.release_of`), with all options of its config.  The zero pages are recognised in memory
    unless they are given.  ``[start, end)`` is the range of bytes that mappings are cut to.  ValueError and
    ImageError as :func:`gpuhmm.dump.load_tables` says, ValueError for an unknown kernel.
    """
    begun = time.perf_counter()
    if maps is not None and vmas is not None:
        raise ValueError("mappings come from maps or from vmas (got both)")
    is_path = isinstance(source, str | Path)
    memory = open_image(source, format=format) if is_path else as_source(source)
    tables = load_tables(memory, cr3, levels=levels)
    named = None if maps is None else read_maps(maps)
    if named is not None:
        vmas = [mapping.vma() for mapping in named]
    choice = _chosen(memory, tables) if kernel is None else given_kernel(kernel)
    found: tuple[int | None, int | None] = (None, None)
    if zero_pfn is None or huge_zero_pfn is None:
        found = find_zero_pages(tables, memory, choice.profile)
    zero_pfn = found[0] if zero_pfn is None else zero_pfn
    huge_zero_pfn = found[1] if huge_zero_pfn is None else huge_zero_pfn
    made = address_space(
        tables,
        vmas,
        kernel=choice.profile,
        zero_pfn=ZERO_PFN if zero_pfn is None else zero_pfn,
        huge_zero_pfn=NO_PFN if huge_zero_pfn is None else huge_zero_pfn,
    )
    origin = {
        "kind": "dump",
        **memory.describe(),
        "cr3": tables.root_pfn << 12,
        "levels": tables.levels,
        "table_faults": tables.fault_counts(),
    }
    return capture_of_space(
        made.space,
        [mapping_of(vma) for vma in made.space.vmas] if named is None else named,
        source=f"CR3 {tables.root_pfn << 12:#x} of {memory.describe().get('path', 'a reader')}",
        notes=[*made.notes, *_notes(tables, memory, zero_pfn)],
        origin=origin,
        kernel_why=choice.why,
        start=start,
        end=end,
        seconds=time.perf_counter() - begun,
    )


def read_maps(path: str | os.PathLike[str]) -> list[Mapping]:
    """Return the user mappings of a file in the form of /proc/PID/maps or smaps.

    ValueError for a file that holds none.
    """
    with open(path, "rb") as file:
        text = file.read().decode(errors="backslashreplace")
    user, _ = user_mappings(parse_maps(text))
    if not user:
        raise ValueError(f"{path} must hold mappings in the form of /proc/PID/maps (got none)")
    return user


def _chosen(memory: MemorySource, tables: RawTables) -> KernelChoice:
    found = release_of(memory, tables)
    if found is None:
        return choose_kernel(None)
    release, where = found
    return choose_kernel(release, release_from=where)


def _notes(tables: RawTables, memory: MemorySource, zero_pfn: int | None) -> list[str]:
    notes = [*memory.describe().get("notes", []), *tables.notes]
    notes += [f"{count} upper entries: {name}" for name, count in tables.fault_counts().items() if count]
    twice = len(tables.used_twice())
    if twice:
        notes.append(f"{twice} tables are used at more than one level, as in a table that points to itself")
    outside, upright = leaves_outside(tables, memory)
    if upright:
        notes.append(
            f"{upright} PROT_NONE entries map memory of the image only if their PFN is not inverted, "
            "as kernels before 4.18.1 store it: --upright-protnone reads them so"
        )
    if outside:
        notes.append(f"{outside} entries of 4 KiB map physical memory that the image does not hold")
    if zero_pfn is None:
        notes.append("no zero page was recognised: special entries read as ERROR")
    return notes
