"""VMAs where nobody gave any: worked out from the entries."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpuhmm.dump.raw_tables import RawTables
from gpuhmm.mm.tables import Words
from gpuhmm.mm.vma import VM_EXEC, VM_HUGETLB, VM_READ, VM_WRITE, Vma
from gpuhmm.mm.x86 import KNL_ERRATUM_MASK, PAGE_PRESENT, PAGE_PROTNONE, U64
from gpuhmm.translation.runs import MAPPING_NX, MAPPING_PROTNONE, MAPPING_WRITE
from gpuhmm.translation.slots import Part, parts, upper_flags, user_limit

#: What a page says of its area: one number that cuts areas, and bits that add up over an area.
_PLAIN, _NO_ACCESS, _GIGANTIC = 1, 2, 3

#: Leaf tables that are looked at together: 16 MiB of entries.
_BATCH = 4096
#: As many areas as a kernel would never hold: wrong tables, or a hole in them for every page.
MAX_AREAS = 1 << 22

#: Columns of a stretch: start, end, kind, vm_flags.
_Stretches = npt.NDArray[np.uint64]


def areas_of(tables: RawTables) -> list[Vma]:
    """Return one area for each stretch of user addresses whose entries are not none.

    An area can be read, written if any of its entries allows it, executed if any does.  PROTNONE
    entries make areas without access.  An entry that is neither present nor none counts as readable.
    Pages of 1 GiB, which no area of small pages can have, make hugetlb areas.  ValueError for more
    than MAX_AREAS, and for tables that point to each other so often that no process has them.
    """
    half = 1 << (11 + 9 * tables.levels)
    held: _Stretches = np.empty((0, 4), dtype=np.uint64)
    for part in parts(tables, 0, half, max_tables=user_limit(tables)):
        held = _joined(np.concatenate((held, *_part_stretches(tables, part))))
        if len(held) > MAX_AREAS:
            raise ValueError(f"the entries make more than {MAX_AREAS} areas: give the VMAs")
    held[:, 1] = np.minimum(held[:, 1], U64(half))
    return [_vma(*row) for row in held.tolist()]


def _vma(start: int, end: int, kind: int, flags: int) -> Vma:
    if kind == _NO_ACCESS:
        return Vma(start, end, 0)
    if kind == _GIGANTIC:
        return Vma(start, end, flags | VM_READ | VM_HUGETLB, 30)
    return Vma(start, end, flags | VM_READ)


def _part_stretches(tables: RawTables, part: Part) -> list[_Stretches]:
    """Return the stretches of one part by address: of its small pages, and its large ones."""
    found = [_leaf_stretches(tables, part, slice(at, at + _BATCH)) for at in range(0, len(part.rows), _BATCH)]
    large = np.empty((len(part.large), 4), dtype=np.uint64)
    large[:, 0] = part.large[:, 0]
    large[:, 1] = part.large[:, 0] + (part.large[:, 2] << U64(12))
    gigantic = part.large[:, 2] == 1 << 18
    no_access = (part.large[:, 3] & MAPPING_PROTNONE) != 0
    large[:, 2] = np.where(gigantic, _GIGANTIC, np.where(no_access, _NO_ACCESS, _PLAIN))
    large[:, 3] = _vm_flags(part.large[:, 3])
    # PMDs that are neither present nor none: migrating huge pages.
    rest = part.others[(part.others[:, 1] == 2) & ((part.others[:, 2] & PAGE_PRESENT) == 0)]
    rest = rest[(rest[:, 2] & ~KNL_ERRATUM_MASK) != 0]
    moving = np.zeros((len(rest), 4), dtype=np.uint64)
    moving[:, 0] = rest[:, 0]
    moving[:, 1] = rest[:, 0] + U64(1 << 21)
    moving[:, 2] = _PLAIN
    return [np.concatenate((*found, large, moving))]


def _leaf_stretches(tables: RawTables, part: Part, chosen: slice) -> _Stretches:
    """Return the stretches in some leaf tables; none reaches beyond its table yet."""
    entries = tables.leaf[part.rows[chosen].astype(np.intp)]
    present = (entries & PAGE_PRESENT) != 0
    kind = np.where(
        (entries & ~KNL_ERRATUM_MASK) == 0,
        0,
        np.where(~present & ((entries & PAGE_PROTNONE) != 0), _NO_ACCESS, _PLAIN),
    ).astype(np.uint8)
    above = np.broadcast_to(part.above[chosen][:, None], entries.shape)
    flags = np.where(present, _vm_flags(upper_flags(entries, above)), U64(0))
    begins = np.empty(kind.shape, dtype=np.bool_)
    begins[:, 0] = True
    begins[:, 1:] = kind[:, 1:] != kind[:, :-1]
    first = np.flatnonzero(begins)
    sizes = np.diff(np.concatenate((first, [kind.size])))
    table, slot = np.divmod(first, 512)
    stretches = np.empty((len(first), 4), dtype=np.uint64)
    stretches[:, 0] = part.vas[chosen][table] + (slot.astype(np.uint64) << U64(12))
    stretches[:, 1] = stretches[:, 0] + (sizes.astype(np.uint64) << U64(12))
    stretches[:, 2] = kind.reshape(-1)[first]
    stretches[:, 3] = np.bitwise_or.reduceat(flags.reshape(-1), first)
    return stretches[stretches[:, 2] != 0]


def _vm_flags(mapping_flags: Words) -> Words:
    """Return VM_WRITE and VM_EXEC of MAPPING_* bits."""
    flags: Words = np.where((mapping_flags & MAPPING_WRITE) != 0, U64(VM_WRITE), U64(0))
    flags |= np.where((mapping_flags & MAPPING_NX) == 0, U64(VM_EXEC), U64(0))
    return flags


def _joined(stretches: _Stretches) -> _Stretches:
    """Sort stretches and join neighbours of one kind."""
    ordered = stretches[np.argsort(stretches[:, 0], kind="stable")]
    if len(ordered) < 2:
        return ordered
    cut = (ordered[1:, 0] != ordered[:-1, 1]) | (ordered[1:, 2] != ordered[:-1, 2])
    first = np.concatenate(([0], np.flatnonzero(cut) + 1))
    made = ordered[first]
    made[:, 1] = ordered[np.concatenate((first[1:], [len(ordered)])) - 1, 1]
    made[:, 3] = np.bitwise_or.reduceat(ordered[:, 3], first)
    return made
