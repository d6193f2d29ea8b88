"""What page tables do not show: descriptors, free frames, swap, files and devices of a space's machine.

All of it or none: a space whose memory was never asked for has no such part.  Descriptors are saved of
frames that have any field set, since a frame that nobody looked at has none.  Not saved is code: who is
called when a page leaves a device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.errors import SnapshotError
from gpuhmm.memory.pages.device import DeviceMemory
from gpuhmm.memory.pages.filemap import File
from gpuhmm.memory.pages.page import _FIELDS, SECTION_MASK, SECTION_SHIFT
from gpuhmm.memory.pages.page_alloc import FreeFrames
from gpuhmm.memory.pages.physical import PhysicalMemory
from gpuhmm.memory.pages.swapfile import SwapDevice
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.vma import Vma, VmaList
from gpuhmm.snapshot.page_state_checks import LIMIT, check_page_state
from gpuhmm.snapshot.parts import Arrays


def page_state_parts(space: AddressSpace) -> tuple[dict[str, Any], Arrays] | None:
    """Return the scalars and the arrays of the page state of ``space``, None where there is none.

    SnapshotError for what a snapshot of one space cannot hold: memory that several share, an exited
    space, a migration under way, a file of another machine, and counts that contradict each other.
    """
    memory = space._memory
    if memory is None:
        if any(vma.file is not None for vma in space.vmas):
            raise SnapshotError(
                "an area maps a file of a memory that is not that of the space: it cannot be saved"
            )
        return None
    if len(memory.spaces) > 1:
        raise SnapshotError(
            f"{len(memory.spaces)} address spaces share one PhysicalMemory: a snapshot holds one, let the "
            "others exit first"
        )
    if memory.spaces != [space]:
        raise SnapshotError("the address space has exited: its page state cannot be saved")
    if memory.migrations:
        raise SnapshotError("a migration is in flight: end it before the space is saved")
    scalars, arrays = _parts(space, memory)
    check_page_state(scalars, arrays, len(space.vmas))  # what loading would refuse is not written
    return scalars, arrays


def set_page_state(space: AddressSpace, scalars: Any, arrays: Arrays) -> None:
    """Give a fresh ``space`` the page state that :func:`page_state_parts` returned.

    SnapshotError for parts that are damaged or contradict each other.
    """
    try:
        check_page_state(scalars, arrays, len(space.vmas))
        memory = _memory_of_parts(scalars, arrays)
        memory.add_space(space)
        space._memory = memory
        space._table_pfn = scalars["table_pfn"]
        space.vmas = VmaList(
            _vma_of_row(memory, vma, *row)
            for vma, row in zip(space.vmas, arrays["vma_files"].tolist(), strict=True)
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise SnapshotError(f"the snapshot holds no page state: {error}") from None


def _parts(space: AddressSpace, memory: PhysicalMemory) -> tuple[dict[str, Any], Arrays]:
    free, swap = memory._free, memory.swap
    used, freed = len(swap._rows), [device._freed for device in memory.devices]
    scalars: dict[str, Any] = {
        "thp": memory.thp,
        "use_zero_page": memory.use_zero_page,
        "frames": memory.frames,
        "hugetlb_left": memory.hugetlb_left,
        "huge_zero_pfn": memory.huge_zero_pfn,
        "nr_used": memory.nr_used,
        "dax_top": memory._dax_top,
        "table_pfn": space._table_pfn,
        # Frames that nobody asked for yet are found from the tables, after loading as well.
        "free_known": free is not None,
        "free_left": None if free is None else free.left,
        "swap_synchronous": swap.synchronous,
        "swap_left": swap.left,
        "swap_next": swap._next,
        "files": [_file_fields(file) for file in memory.files],
        "devices": [
            {
                "owner": device.owner,
                "npages": device.npages,
                "coherent": device.coherent,
                "first_pfn": device.first_pfn,
                "next": device._next,
                "freed": len(device._freed),
            }
            for device in memory.devices
        ],
    }
    gaps = [] if free is None else list(zip(free._firsts, free._ends, strict=True))
    arrays: Arrays = {
        **_descriptors(memory),
        "free_frames": _words(gaps).reshape(-1, 2),
        "reserved_frames": _words(memory._reserved).reshape(-1, 2),
        "swap_slots": _words(list(swap._rows)),
        "swap_count": swap._count[:used].copy(),
        "swap_content": swap._content[:used].copy(),
        "swap_cache": swap._cache[:used].copy(),
        "swap_freed": _words(swap._freed),
        "file_pfns": np.concatenate([_words([]), *(file._pfns for file in memory.files)]),
        "file_slots": np.concatenate([_words([]), *(file._slots for file in memory.files)]),
        "device_freed": _words([pfn for pfns in freed for pfn in pfns]),
        "vma_files": _words([_vma_row(memory, vma) for vma in space.vmas]).reshape(-1, 4),
    }
    return scalars, arrays


def _words(values: Any) -> npt.NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def _descriptors(memory: PhysicalMemory) -> Arrays:
    """Return every descriptor that is not all zero, by PFN."""
    pfns: list[npt.NDArray[Any]] = [_words([])]
    fields: dict[str, list[npt.NDArray[Any]]] = {name: [np.empty(0, dtype)] for name, dtype in _FIELDS}
    for key, section in sorted(memory.pages.sections.items()):
        known = np.zeros(1 << SECTION_SHIFT, dtype=np.bool_)
        for name in fields:
            known |= getattr(section, name) != 0
        where = np.flatnonzero(known)
        pfns.append(where.astype(np.uint64) + np.uint64(key << SECTION_SHIFT))
        for name, parts in fields.items():
            parts.append(getattr(section, name)[where])
    found = {f"page_{name}": np.concatenate(parts) for name, parts in fields.items()}
    return {"page_pfns": np.concatenate(pfns), **found}


def _file_fields(file: File) -> dict[str, Any]:
    # A file that was cut keeps the rows of what it had: its size does not tell how many there are.
    return {
        "kind": file.kind.name,
        "size": file.size,
        "huge": file.huge,
        "pages": len(file._pfns),
        "dax_pfn": file._dax_pfn if file.kind.dax else None,
    }


def _vma_row(memory: PhysicalMemory, vma: Vma) -> tuple[int, int, int, int]:
    """Return number of the file (0: none), pgoff, whether page_prot is given, and page_prot."""
    number = 0 if vma.file is None else vma.file.number
    if vma.file is not None and vma.file.memory is not memory:
        raise SnapshotError(f"the area at {vma.start:#x} maps a file of another machine: it cannot be saved")
    if not 0 <= vma.pgoff < LIMIT or not 0 <= (vma.page_prot or 0) < 1 << 64:
        raise SnapshotError(f"pgoff and page_prot of the area at {vma.start:#x} must fit in 63 and 64 bits")
    return number, vma.pgoff, int(vma.page_prot is not None), vma.page_prot or 0


def _vma_of_row(memory: PhysicalMemory, vma: Vma, number: int, pgoff: int, given: int, prot: int) -> Vma:
    file = memory.file(number) if number else None
    return replace(vma, file=file, pgoff=pgoff, page_prot=prot if given else None)


def _memory_of_parts(scalars: dict[str, Any], arrays: Arrays) -> PhysicalMemory:
    memory = PhysicalMemory(
        frames=scalars["frames"],
        hugetlb_pages=scalars["hugetlb_left"],
        thp=scalars["thp"],
        use_zero_page=scalars["use_zero_page"],
    )
    memory.huge_zero_pfn, memory.nr_used = scalars["huge_zero_pfn"], scalars["nr_used"]
    memory.swap = _swap_of_parts(scalars, arrays)
    _fill_descriptors(memory, arrays)
    at = 0
    for fields in scalars["files"]:
        past = at + fields["pages"]
        # With a PFN given nothing is reserved: what was is in the part.
        file = File(memory, 0, fields["kind"], huge=fields["huge"], dax_pfn=fields["dax_pfn"] or 0)
        if file.kind.dax:
            file._dax_pfn = fields["dax_pfn"]
        file._pfns, file._slots = arrays["file_pfns"][at:past].copy(), arrays["file_slots"][at:past].copy()
        file.size, at = fields["size"], past
    at, freed = 0, arrays["device_freed"].tolist()
    for fields in scalars["devices"]:
        device = DeviceMemory(memory, fields["owner"], fields["npages"], coherent=fields["coherent"])
        device.first_pfn, device._next = fields["first_pfn"], fields["next"]
        device._freed, at = freed[at : at + fields["freed"]], at + fields["freed"]
    # After the devices, which reserved frames again.
    memory._reserved = [(first, end) for first, end in arrays["reserved_frames"].tolist()]
    memory._dax_top = scalars["dax_top"]
    if scalars["free_known"]:
        memory._free = FreeFrames(_words([[0, 1]]), 1, scalars["free_left"])
        memory._free._firsts, memory._free._ends = arrays["free_frames"].T.tolist()
    return memory


def _swap_of_parts(scalars: dict[str, Any], arrays: Arrays) -> SwapDevice:
    swap = SwapDevice(scalars["swap_left"], synchronous=scalars["swap_synchronous"])
    swap._next = scalars["swap_next"]
    slots, cache = arrays["swap_slots"].tolist(), arrays["swap_cache"].tolist()
    swap._freed = arrays["swap_freed"].tolist()
    for slot in slots:
        swap._row(slot)  # lets the arrays grow
    for name in ("count", "content", "cache"):
        getattr(swap, f"_{name}")[: len(slots)] = arrays[f"swap_{name}"]
    swap._slot_of = {pfn - 1: slot for slot, pfn in zip(slots, cache, strict=True) if pfn}
    return swap


def _fill_descriptors(memory: PhysicalMemory, arrays: Arrays) -> None:
    pfns = arrays["page_pfns"]
    keys, firsts = np.unique(pfns >> np.uint64(SECTION_SHIFT), return_index=True)
    pasts = [*firsts[1:].tolist(), len(pfns)][: len(keys)]
    for key, first, past in zip(keys.tolist(), firsts.tolist(), pasts, strict=True):
        section = memory.pages.section(key << SECTION_SHIFT)
        where = pfns[first:past] & np.uint64(SECTION_MASK)
        for name, _ in _FIELDS:
            getattr(section, name)[where] = arrays[f"page_{name}"][first:past]
