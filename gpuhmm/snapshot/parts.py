"""What a snapshot of an address space is made of: one pair of functions for each part.

A part is scalars (JSON's types) and arrays under names of its own.  Not saved are what is code, the
fault handler, and who listens, the notifiers.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.errors import SnapshotError
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.given_tables import tables_in_pools
from gpuhmm.mm.profile import PROFILES, KernelProfile, kernel_profile
from gpuhmm.mm.vma import Vma

Arrays = dict[str, npt.NDArray[Any]]

#: What a profile is made of; the rest follows.
_PROFILE_FIELDS = [field for field in fields(KernelProfile) if field.init]

#: dtype and columns (None: no second axis) of every array of a space.
_EXPECTED = {
    "upper": (np.uint64, 512),
    "child": (np.int32, 512),
    "leaf": (np.uint64, 512),
    "where": (np.uint64, 3),
    "unreached_pfns": (np.uint64, None),
    "unreached": (np.uint64, 512),
    "vmas": (np.uint64, 4),
    "device_private": (np.uint64, 3),
}


def space_parts(space: AddressSpace) -> tuple[dict[str, Any], Arrays]:
    """Return the scalars and the arrays of ``space``; the arrays are its own, not copies."""
    tables = space.page_tables
    where = [(pfn, level, row) for pfn, (level, row) in tables.where.items()]
    unreached = list(tables.unreached.values())
    scalars = {
        "levels": space.levels,
        "kernel": {field.name: getattr(space.kernel, field.name) for field in _PROFILE_FIELDS},
        "shstk": space.shstk,
        "zero_pfn": space.zero_pfn,
        "huge_zero_pfn": space.huge_zero_pfn,
        "highest_memmap_pfn": space.highest_memmap_pfn,
    }
    arrays: Arrays = {
        "upper": tables.upper,
        "child": tables.child,
        "leaf": tables.leaf,
        "where": np.array(where, dtype=np.uint64).reshape(-1, 3),
        "unreached_pfns": np.array(list(tables.unreached), dtype=np.uint64),
        "unreached": np.array(unreached, dtype=np.uint64).reshape(-1, 512),
        "vmas": np.ascontiguousarray(space.vmas.columns().T),
        "device_private": space.device_private,
    }
    return scalars, arrays


def space_of_parts(scalars: dict[str, Any], arrays: Arrays) -> AddressSpace:
    """Return the address space that :func:`space_parts` was given, on the arrays themselves.

    SnapshotError for parts that are none of a space.
    """
    for name, (dtype, columns) in _EXPECTED.items():
        array = arrays.get(name)
        shape = None if array is None else array.shape[1:]
        if array is None or array.dtype != dtype or shape != (() if columns is None else (columns,)):
            raise SnapshotError(
                f"the snapshot must hold the array {name} of {np.dtype(dtype)}, {columns} columns"
            )
    try:
        kernel = _profile(scalars["kernel"])
        tables = tables_in_pools(
            int(scalars["levels"]),
            kernel,
            upper=arrays["upper"],
            child=arrays["child"],
            leaf=arrays["leaf"],
            where=arrays["where"],
            unreached=dict(zip(arrays["unreached_pfns"].tolist(), arrays["unreached"], strict=True)),
        )
        return AddressSpace(
            levels=tables.levels,
            root_pfn=tables.root_pfn,
            vmas=[Vma(*row) for row in arrays["vmas"].tolist()],
            kernel=kernel,
            zero_pfn=int(scalars["zero_pfn"]),
            huge_zero_pfn=int(scalars["huge_zero_pfn"]),
            highest_memmap_pfn=int(scalars["highest_memmap_pfn"]),
            device_private=arrays["device_private"].tolist(),
            shstk=bool(scalars.get("shstk", False)),  # snapshots before v6.12 was known have none
            page_tables=tables,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SnapshotError(f"the snapshot holds no address space: {error}") from None


def _profile(saved: dict[str, Any]) -> KernelProfile:
    if "nr_device_types" not in saved:  # snapshots before v6.12 was known hold the numbers of v5.18 or v6.1
        return kernel_profile(saved["name"])
    made = KernelProfile(**{**saved, "swp_pfn_bits": tuple(saved["swp_pfn_bits"])})
    return made if PROFILES.get(made.name) != made else PROFILES[made.name]
