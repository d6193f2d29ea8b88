"""Facts about files that are taken from a recording's outcome: see ``gpuhmm.check.recorded.facts``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from gpuhmm.check.recorded.given import Given
from gpuhmm.memory.fault.file import FAULT_AROUND_PAGES
from gpuhmm.mm.entry import NONE, PMD_SIZE, PSE, RW, SOFT_DIRTY, SPECIAL, P, huge_pfn_of, pfn_of
from gpuhmm.mm.handler import (
    FAULT_FLAG_WRITE,
    VM_FAULT_ERROR,
    VM_FAULT_LOCKED,
    VM_FAULT_MAJOR,
    VM_FAULT_SIGBUS,
)
from gpuhmm.mm.vma import VM_SHARED, VM_UFFD_MISSING, VM_UFFD_WP, Vma


def page_cache(given: Given) -> bool:
    """A page of a file that a read fault found, or that fault-around mapped, was in the page cache.

    A fault that returned VM_FAULT_LOCKED had to look for the page itself: it was not.  A huge page that
    came into the page tables was in the page cache whole.
    """
    taken = False
    results, devmap = _first_file_results(given), given.mm.kernel.page_devmap
    for va, pte, vma in _new_file_entries(given, 1):
        assert vma.file is not None
        first = results.get((vma.file.number, vma.index(va)))
        found = first is None or not first[0] & VM_FAULT_LOCKED
        if pte & devmap or (found and not pte & SPECIAL and _is_of_file(vma, pte, first)):
            index, pfn = vma.index(va), pfn_of(pte)
            if index < vma.file.npages and vma.file.lookup(index) != pfn:
                vma.file.replace(index, pfn) if pte & devmap else vma.file.insert(index, pfn)
                taken = True
        elif first is not None and not first[1] and not first[0] & (VM_FAULT_LOCKED | VM_FAULT_ERROR):
            taken |= _found_and_copied(given, vma, va)
    for va, pmd, vma in _new_file_entries(given, 2):
        assert vma.file is not None
        if not pmd & PSE or vma.is_hugetlb or vma.index(va) + 512 > vma.file.npages:
            continue
        index, pfn = vma.index(va), huge_pfn_of(pmd)
        if pmd & devmap:
            for i in range(512):
                vma.file.replace(index + i, pfn + i)
        elif vma.file.kind.dax:
            for i in range(512):
                vma.file.remove(index + i)
        else:
            given.mm.memory.pages.fill(pfn, 512, order=9)
            vma.file.insert(index, pfn, 9)
        taken = True
    return taken


def page_cache_beside(given: Given) -> bool:
    """A table under a read fault that was a bus error came from a page next to it that was in the page cache.

    The page lies below the range, within reach of fault-around; its PFN is not known.
    """
    taken = False
    for fault in given.call.faults:
        vma = given.mm.vmas.lookup(fault.a)
        pmd = fault.a & -PMD_SIZE
        if vma is None or vma.file is None or not vma.file.kind.map_pages or fault.b & FAULT_FLAG_WRITE:
            continue
        if given.call.before.get((2, pmd), 0) & ~NONE or not given.call.after.get((2, pmd), 0) & P:
            continue
        beside = max(fault.a & -(FAULT_AROUND_PAGES << 12), vma.start)
        if fault.ret & VM_FAULT_ERROR == VM_FAULT_SIGBUS and beside < given.call.start:
            taken |= vma.index(beside) < vma.file.npages and _found_and_copied(given, vma, beside)
    return taken


def _found_and_copied(given: Given, vma: Vma, va: int) -> bool:
    """A page that a read fault found, and that a later write copied: its own PFN is not known."""
    file, memory = vma.file, given.mm.memory
    assert file is not None
    if file.kind.dax or file.lookup(vma.index(va)) is not None:
        return False
    pfn = memory.alloc_page()
    assert pfn is not None
    file.insert(vma.index(va), pfn)
    memory.put_page(pfn)
    return True


def hugetlb_page_cache(given: Given) -> bool:
    """A page of a hugetlb file that was copied in the fault that mapped it was in the page cache."""
    taken = False
    for fault in given.call.faults:
        vma = given.mm.vmas.lookup(fault.a)
        if vma is None or vma.file is None or not vma.is_hugetlb or vma.flags & VM_SHARED:
            continue
        size = 1 << vma.page_shift
        va = fault.a & -size
        before = given.call.before.get((2 if vma.page_shift == 21 else 3, va), 0)
        index = vma.index(max(va, vma.start))
        if before & ~NONE or (va, va + size) not in given.cleared or vma.file.lookup(index) is not None:
            continue
        pfn = given.mm.memory.alloc_huge_page(vma.page_shift - 12)
        assert pfn is not None
        vma.file.insert(index, pfn, vma.page_shift - 12)
        given.mm.memory.put_page(pfn)
        taken = True
    return taken


def _first_file_results(given: Given) -> dict[tuple[int, int], tuple[int, bool]]:
    """Return what the first fault at each (file, page of it) returned, and whether it wrote."""
    found: dict[tuple[int, int], tuple[int, bool]] = {}
    for fault in given.call.faults:
        vma = given.mm.vmas.lookup(fault.a)
        if vma is not None and vma.file is not None:
            key = (vma.file.number, vma.index(fault.a))
            found.setdefault(key, (fault.ret, bool(fault.b & FAULT_FLAG_WRITE)))
    return found


def visible_page_cache(given: Given) -> bool:
    """What a mapping of a file maps before the call is in the page cache; nothing of it is a guess."""
    memory = given.mm.memory
    for (level, va), pte in given.call.before.items():
        vma = given.mm.vmas.lookup(va)
        if level != 1 or vma is None or vma.file is None or not vma.file.kind.has_ops or vma.file.kind.dax:
            continue
        own = not vma.flags & VM_SHARED and pte & (RW | SOFT_DIRTY | given.mm.kernel.dirty_bits)
        index = vma.index(va)
        if not pte & P or pte & SPECIAL or own or index >= vma.file.npages:
            continue
        if vma.file.lookup(index) is None:
            vma.file.insert(index, pfn_of(pte))
        memory.pages.get(pfn_of(pte))
        memory.pages.add_mapcount(pfn_of(pte), 1)
    return False


def same_file(given: Given) -> bool:
    """Two areas in which one page was found at the same place of their files map the same file."""
    mm = given.mm
    seen: dict[tuple[int, int], Vma] = {}
    taken = False
    for (level, va), entry in given.call.after.items():
        vma = mm.vmas.lookup(va)
        if level != 1 or not entry & P or vma is None or vma.file is None or not vma.file.kind.has_ops:
            continue
        other = seen.setdefault((vma.index(va), pfn_of(entry)), vma)
        known = mm.vmas.lookup(other.start)
        assert known is not None
        if known.file is vma.file or known.file is None:
            continue
        file = max(known.file, vma.file, key=lambda file: file.size)
        for area in [area for area in mm.vmas if area.file in (known.file, vma.file)]:
            mm.vmas.replace(area, replace(area, file=file))
        taken = True
    return taken


def _is_of_file(vma: Vma, pte: int, first: tuple[int, bool] | None) -> bool:
    """True for an entry that a read fault made, or any in a shared area: else the page is a private copy."""
    return bool(vma.flags & VM_SHARED) or not (pte & RW or (first is not None and first[1]))


def _new_file_entries(given: Given, level: int) -> Iterator[tuple[int, int, Vma]]:
    """Yield (address, entry, area) of what mappings of files map after the call and did not before."""
    for (at, va), entry in given.call.after.items():
        if at != level or not entry & P or given.call.before.get((at, va), 0) & ~NONE:
            continue
        vma = given.mm.vmas.lookup(va)
        if vma is not None and vma.file is not None and vma.file.kind.has_ops:
            yield va, entry, vma


def file_size(given: Given) -> bool:
    """A bus error in a mapping of a file was met at its end."""
    taken = False
    for fault in given.call.faults:
        if fault.ret & VM_FAULT_ERROR != VM_FAULT_SIGBUS:
            continue
        vma = given.mm.vmas.lookup(fault.a)
        if vma is None or vma.file is None or vma.is_hugetlb or not vma.file.kind.has_ops:
            continue
        if _uffd_stops(vma):
            continue
        vma.file.truncate(min(vma.file.size, vma.index(fault.a) << 12))
        taken = True
    return taken


def _uffd_stops(vma: Vma) -> bool:
    return bool(vma.flags & (VM_UFFD_MISSING | VM_UFFD_WP))


def file_page_in_swap(given: Given) -> bool:
    """A page of shared memory that took VM_FAULT_MAJOR to come was in swap."""
    taken = False
    for va, (ret, _) in given.first_results.items():
        vma = given.mm.vmas.lookup(va)
        entry = given.call.before.get((1, va), 0)
        if vma is None or vma.file is None or not vma.file.kind.has_ops or entry & ~NONE:
            continue
        if ret & VM_FAULT_MAJOR and vma.file.lookup(vma.index(va)) is None:
            slot = given.mm.memory.swap.alloc()
            assert slot is not None
            given.mm.memory.swap.duplicate(slot)
            vma.file.set_slot(vma.index(va), slot)
            taken = True
    return taken
