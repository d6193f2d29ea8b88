"""What must hold of page state in a snapshot: what passes can be built and used, leaving no array.

It is checked before it is written as well, so that nothing is saved that could not be loaded.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from gpuhmm.errors import SnapshotError
from gpuhmm.memory.pages.filemap import FILE_KINDS
from gpuhmm.memory.pages.page import _FIELDS, PG_ADOPTED, PG_DEVICE, PG_FILE, PG_HWPOISON, PG_LAZYFREE
from gpuhmm.mm import x86
from gpuhmm.snapshot.parts import Arrays

#: dtype and columns (None: no second axis) of every array of the part.
_EXPECTED: dict[str, tuple[Any, int | None]] = {
    "page_pfns": (np.uint64, None),
    **{f"page_{name}": (dtype, None) for name, dtype in _FIELDS},
    "free_frames": (np.uint64, 2),
    "reserved_frames": (np.uint64, 2),
    "swap_slots": (np.uint64, None),
    "swap_count": (np.int32, None),
    "swap_content": (np.uint64, None),
    "swap_cache": (np.uint64, None),
    "swap_freed": (np.uint64, None),
    "file_pfns": (np.uint64, None),
    "file_slots": (np.uint64, None),
    "device_freed": (np.uint64, None),
    "vma_files": (np.uint64, 4),
}
#: Arrays that have a row for each row of another.
_BESIDE = {
    **{f"page_{name}": "page_pfns" for name, _ in _FIELDS},
    **{f"swap_{name}": "swap_slots" for name in ("count", "content", "cache")},
    "file_slots": "file_pfns",
}
#: Beyond every number that may be kept here.
LIMIT = 1 << 63


def _must(right: Any, what: str) -> None:
    if not right:
        raise SnapshotError(f"the page state contradicts itself: {what}")


def _check_number(fields: dict[str, Any], name: str, end: int = LIMIT, *, none: bool = False) -> None:
    value = fields[name]
    right = (none and value is None) or (type(value) is int and 0 <= value < end)
    _must(right, f"{name} must be a number below {end:#x}" + (" or null" if none else ""))


def check_page_state(scalars: Any, arrays: Arrays, nvmas: int) -> None:
    """SnapshotError for a part that is damaged or contradicts itself, of a space with ``nvmas`` areas.

    KeyError, TypeError or AttributeError where a scalar is missing or of another type.
    """
    _must(isinstance(scalars, dict), "its scalars must be an object")
    for name, (dtype, columns) in _EXPECTED.items():
        array = arrays.get(name)
        shape = () if columns is None else (columns,)
        right = array is not None and array.dtype == dtype and array.ndim and array.shape[1:] == shape
        _must(right, f"it must hold the array {name} of {np.dtype(dtype)}, {columns} columns")
    for name, other in _BESIDE.items():
        _must(len(arrays[name]) == len(arrays[other]), f"{name} must be as long as {other}")
    _must(scalars["thp"] in ("always", "madvise", "never"), "thp must be always, madvise or never")
    for name in ("use_zero_page", "free_known", "swap_synchronous"):
        _must(isinstance(scalars[name], bool), f"{name} must be true or false")
    for name in ("frames", "hugetlb_left", "free_left", "swap_left"):
        _check_number(scalars, name, none=True)
    _check_number(scalars, "huge_zero_pfn", x86.MAX_PFN, none=True)
    _check_number(scalars, "table_pfn", x86.MAX_PFN)
    for name in ("nr_used", "dax_top", "swap_next"):
        _check_number(scalars, name)
    _check_pages(arrays, len(scalars["files"]))
    _check_ranges(arrays, scalars["free_known"])
    _check_swap(arrays)
    _check_files(scalars["files"], arrays)
    _check_devices(scalars["devices"], arrays["device_freed"].tolist())
    _must(len(arrays["vma_files"]) == nvmas, "every area must have a row in vma_files")
    numbers, pgoff, given, _ = arrays["vma_files"].T
    _must((numbers <= len(scalars["files"])).all(), "an area must map a file that is there")
    _must((pgoff < LIMIT).all() and (given <= 1).all(), "vma_files must hold pgoffs and yes or no")


def _check_pages(arrays: Arrays, nfiles: int) -> None:
    pfns, orders = arrays["page_pfns"], arrays["page_order"]
    _must((pfns[:-1] < pfns[1:]).all() and (pfns < x86.MAX_PFN).all(), "page_pfns must be sorted PFNs")
    _must((arrays["page_refcount"] >= 0).all(), "no page can have fewer than no references")
    _must((arrays["page_mapcount"] >= 0).all(), "no page can be mapped fewer than no times")
    _must((arrays["page_flags"] < 2 * PG_LAZYFREE).all(), "page_flags must be PG_* bits")
    _must((arrays["page_mapping"] <= nfiles).all(), "a page must name a file that is there")
    _must(np.isin(orders, (0, 9, 18)).all(), "the order of a page must be 0, 9 or 18")
    for order in (9, 18):
        heads, counts = np.unique(pfns[orders == order] >> np.uint64(order), return_counts=True)
        _must((counts == 1 << order).all(), f"a page of order {order} must be whole (of {len(heads)})")


def _check_ranges(arrays: Arrays, known: bool) -> None:
    free, reserved = arrays["free_frames"], arrays["reserved_frames"]
    for ranges in (free, reserved):
        _must((ranges[:, 0] <= ranges[:, 1]).all() and (ranges < 1 << 50).all(), "ranges must hold PFNs")
    edges = free.reshape(-1)
    _must((edges[:-1] < edges[1:]).all(), "the ranges of free frames must be sorted and apart")
    _must(known or not len(free), "free frames that are not known must be none")
    # Of pages that came with given tables it is not known who else has them.
    ours = arrays["page_flags"] & (PG_ADOPTED | PG_DEVICE | PG_HWPOISON) == 0
    pfns = arrays["page_pfns"][ours & (arrays["page_refcount"] > 0)]
    _must((np.searchsorted(edges, pfns, "right") % 2 == 0).all(), "no frame can be free and in use")


def _check_swap(arrays: Arrays) -> None:
    slots, cache = arrays["swap_slots"], arrays["swap_cache"]
    _must(len(np.unique(slots)) == len(slots), "a swap slot must be listed once")
    _must((arrays["swap_count"] >= 0).all(), "a swap slot cannot be named fewer than no times")
    _must(np.isin(arrays["swap_freed"], slots).all(), "a free swap slot must be listed")
    cached = cache[cache != 0]
    _must(len(np.unique(cached)) == len(cached), "a page can stand for one swap slot")
    right = np.isin(cached - np.uint64(1), arrays["page_pfns"]).all()
    _must(right, "a page of the swap cache must have a descriptor")


def _check_files(files: Any, arrays: Arrays) -> None:
    at, total = 0, len(arrays["file_pfns"])
    slots = arrays["file_slots"]
    known = np.isin(slots[slots != 0] - np.uint64(1), arrays["swap_slots"])
    _must(known.all(), "a file must name known swap slots")
    for number, file in enumerate(files, 1):
        _must(file["kind"] in FILE_KINDS and isinstance(file["huge"], bool), "a file must be of a known kind")
        _check_number(file, "pages", total - at + 1)
        _check_number(file, "size", file["pages"] * 4096 + 1)
        _must(file["size"] % 4096 == 0, "the size of a file must be a multiple of the page size")
        _check_number(file, "dax_pfn", x86.MAX_PFN, none=not FILE_KINDS[file["kind"]].dax)
        pfns = arrays["file_pfns"][at : at + file["pages"]]
        at += file["pages"]
        _must((pfns <= x86.MAX_PFN).all(), "a file must hold PFNs")
        if FILE_KINDS[file["kind"]].dax:
            continue  # its frames have no descriptors
        cached = pfns[pfns != 0] - np.uint64(1)
        rows = np.searchsorted(arrays["page_pfns"], cached)
        _must(np.isin(cached, arrays["page_pfns"]).all(), "a page of a file must have a descriptor")
        if not FILE_KINDS[file["kind"]].hugetlb:  # there only heads say so
            its = (arrays["page_mapping"][rows] == number) & (arrays["page_flags"][rows] & PG_FILE != 0)
            _must(its.all(), "a page of a file must name it")
    _must(at == total, "file_pfns must be those of the files")


def _check_devices(devices: Any, freed: list[int]) -> None:
    at, ranges = 0, []
    for device in devices:
        _check_number(device, "owner", 1 << 64)
        _check_number(device, "first_pfn", x86.MAX_PFN)
        _check_number(device, "npages", x86.MAX_PFN - device["first_pfn"] + 1)
        _check_number(device, "next", device["npages"] + 1)
        _check_number(device, "freed", min(len(freed) - at, device["next"]) + 1)
        _must(isinstance(device["coherent"], bool), "coherent must be true or false")
        own, first = freed[at : at + device["freed"]], device["first_pfn"]
        at += len(own)
        given = all(first <= pfn < first + device["next"] for pfn in own)
        _must(given and len({*own}) == len(own), "a free page of a device must be one that it gave, once")
        ranges.append((first, first + device["npages"]))
    ranges.sort()
    apart = all(left[1] <= right[0] for left, right in pairwise(ranges))
    _must(apart and at == len(freed), "the pages of devices must be their own")
