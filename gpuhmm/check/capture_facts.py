"""What is taken from a capture's outcome because the page tables before the call do not show it.

Every rule is a function of :class:`Given`, listed in FACTS.  It puts the fact into the page state and
returns True if it took one from the outcome that the model would not have assumed by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from gpuhmm.check.captured_call import CapturedCall, Event
from gpuhmm.fault.entry import (
    DEVMAP,
    NONE,
    PFN,
    PMD_SIZE,
    PROTNONE,
    PSE,
    RW,
    SOFT_DIRTY,
    SPECIAL,
    SWP_EXCLUSIVE,
    D,
    P,
    huge_pfn_of,
    pfn_of,
    swp_offset,
    swp_pfn,
)
from gpuhmm.fault.file import FAULT_AROUND_PAGES
from gpuhmm.faults import (
    FAULT_FLAG_WRITE,
    VM_FAULT_ERROR,
    VM_FAULT_LOCKED,
    VM_FAULT_MAJOR,
    VM_FAULT_SIGBUS,
    VM_FAULT_WRITE,
)
from gpuhmm.hmm import HMM_PFN_FLAGS
from gpuhmm.machine.page import PG_ADOPTED
from gpuhmm.machine.swapfile import slot_of
from gpuhmm.memory.migrate import Migration, Move
from gpuhmm.notifier import MMU_NOTIFY_CLEAR, MMU_NOTIFY_MIGRATE
from gpuhmm.space import AddressSpace
from gpuhmm.vma import VM_SHARED, Vma

#: What the owner of the first device-private page in the range is called here, and everybody else.
OWNER = 0xD0D0
STRANGER = 0x5757

_FLAGS = int(HMM_PFN_FLAGS)


@dataclass(frozen=True)
class Given:
    """A captured call, and the space that is being made ready for its replay."""

    call: CapturedCall
    mm: AddressSpace

    @cached_property
    def cleared(self) -> set[tuple[int, int]]:
        """The ranges ``(start, end)`` of all CLEAR events."""
        return {(event.start, event.end) for event in self.call.events if event.event == MMU_NOTIFY_CLEAR}

    @cached_property
    def write_results(self) -> dict[int, list[int]]:
        """What every write fault at an address returned."""
        found: dict[int, list[int]] = {}
        for fault in self.call.faults:
            if fault.b & FAULT_FLAG_WRITE:
                found.setdefault(fault.a, []).append(fault.ret)
        return found

    @cached_property
    def first_results(self) -> dict[int, tuple[int, bool]]:
        """What the first fault at an address returned, and whether it wrote."""
        found: dict[int, tuple[int, bool]] = {}
        for fault in self.call.faults:
            found.setdefault(fault.a, (fault.ret, bool(fault.b & FAULT_FLAG_WRITE)))
        return found

    def reused(self, va: int) -> bool:
        """True if a write to a read-only page at ``va`` was granted without a copy."""
        if (va, va + 4096) in self._copied:
            return False
        return any(ret & VM_FAULT_WRITE for ret in self.write_results.get(va, ()))

    @cached_property
    def _copied(self) -> set[tuple[int, int]]:
        """CLEAR events that are copies: those inside the migration of a device page are not."""
        copied = set()
        before: Event | None = None
        for event in self.call.events:
            if event.event == MMU_NOTIFY_CLEAR:
                inside = before is not None and before.event == MMU_NOTIFY_MIGRATE
                if not (inside and before is not None and before.start == event.start):
                    copied.add((event.start, event.end))
            before = event
        return copied

    def private_entries(self, level: int) -> Iterator[tuple[int, int, Vma]]:
        """Yield (address, entry, area) of the entries of ``level`` in private areas that are not none."""
        for (at, va), entry in self.call.before.items():
            if at != level or not entry & ~NONE:
                continue
            vma = self.mm.vmas.lookup(max(va, self.call.start))
            if vma is not None and not vma.flags & VM_SHARED:
                yield va, entry, vma


Fact = Callable[[Given], bool]


def exclusive_page(given: Given) -> bool:
    """A read-only private page that a write fault reused was exclusive; any other is taken for shared.

    The same for the pages behind PROTNONE, migration, device and swap entries without the right to write.
    """
    taken = False
    memory, kernel = given.mm.memory, given.mm.kernel
    for va, pte, vma in given.private_entries(1):
        index = vma.index(va)
        if pte & (P | PROTNONE):
            if pte & (RW | SPECIAL | DEVMAP) or not given.reused(va):
                continue
            memory.adopt(pfn_of(pte), anon=True, exclusive=True, index=index)
            taken = True
            continue
        swp_type = pte >> 59
        if swp_type < kernel.max_swapfiles:
            if not pte & SWP_EXCLUSIVE and given.reused(va):
                memory.swap.adopt(slot_of(swp_type, swp_offset(pte)), 1)
                taken = True
        elif (swp_type == kernel.swp_device_read and _alone_on_device(given, va)) or (
            swp_type
            in (
                kernel.swp_migration_read,
                kernel.swp_device_exclusive_read,
            )
            and given.reused(va)
        ):
            memory.adopt(swp_pfn(given.mm, pte), anon=True, exclusive=True, index=index)
            taken = True
    return taken


def _alone_on_device(given: Given, va: int) -> bool:
    """True if the page at ``va`` came back from its device without looking for others who map it."""
    events = given.call.events
    back = [i for i, event in enumerate(events) if event.event == MMU_NOTIFY_MIGRATE and event.start == va]
    if not back or back[0] + 1 == len(events):
        return bool(back)
    after = events[back[0] + 1]
    return not (
        after.event == MMU_NOTIFY_CLEAR and after.start == va and after.attempt == events[back[0]].attempt
    )


def exclusive_huge_page(given: Given) -> bool:
    """A read-only huge page that a write fault reused, instead of splitting or copying it, was exclusive."""
    taken = False
    for level in (2, 3):
        for va, entry, vma in given.private_entries(level):
            size = 1 << (21 if level == 2 else 30)
            leaf = entry & (P | PROTNONE) and entry & PSE and not entry & (RW | DEVMAP)
            if not leaf or (va, va + size) in given.cleared:
                continue
            if vma.is_hugetlb:
                results = [ret for at, ret in given.first_results.items() if va <= at < va + size]
                if not any(written and not ret & VM_FAULT_ERROR for ret, written in results):
                    continue
                order, pfn = vma.page_shift - 12, ((entry if entry & P else ~entry) & PFN) >> 12
            else:
                if not any(given.reused(at) for at in given.write_results if va <= at < va + size):
                    continue
                order, pfn = 9, huge_pfn_of(entry)
            index = vma.index(max(va, vma.start))
            given.mm.memory.adopt(pfn, order=order, anon=True, exclusive=True, index=index)
            taken = True
    return taken


def page_cache(given: Given) -> bool:
    """A page of a file that a read fault found, or that fault-around mapped, was in the page cache.

    A fault that returned VM_FAULT_LOCKED had to look for the page itself: it was not.  A huge page that
    came into the page tables was in the page cache whole.
    """
    taken = False
    results = _first_file_results(given)
    for va, pte, vma in _new_file_entries(given, 1):
        assert vma.file is not None
        first = results.get((vma.file.number, vma.index(va)))
        found = first is None or not first[0] & VM_FAULT_LOCKED
        if pte & DEVMAP or (found and not pte & SPECIAL and _is_of_file(vma, pte, first)):
            index, pfn = vma.index(va), pfn_of(pte)
            if index < vma.file.npages and vma.file.lookup(index) != pfn:
                vma.file.replace(index, pfn) if pte & DEVMAP else vma.file.insert(index, pfn)
                taken = True
        elif first is not None and not first[1] and not first[0] & (VM_FAULT_LOCKED | VM_FAULT_ERROR):
            taken |= _found_and_copied(given, vma, va)
    for va, pmd, vma in _new_file_entries(given, 2):
        assert vma.file is not None
        if not pmd & PSE or vma.is_hugetlb or vma.index(va) + 512 > vma.file.npages:
            continue
        index, pfn = vma.index(va), huge_pfn_of(pmd)
        if pmd & DEVMAP:
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
    """A table under a read fault that was a bus error came from a page beside it that was in the page cache.

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
        own = not vma.flags & VM_SHARED and pte & (RW | D | SOFT_DIRTY)
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
    return bool(vma.flags & 0x1200)


def swap_cache(given: Given) -> bool:
    """A swapped page that came back without VM_FAULT_MAJOR was in the swap cache."""
    taken = False
    memory, kernel = given.mm.memory, given.mm.kernel
    for va, pte, _ in given.private_entries(1):
        if pte & (P | PROTNONE) or pte >> 59 >= kernel.max_swapfiles:
            continue
        slot = slot_of(pte >> 59, swp_offset(pte))
        first = given.first_results.get(va)
        if first is None or first[0] & (VM_FAULT_MAJOR | VM_FAULT_ERROR):
            continue
        memory.swap.adopt(slot, 1 if pte & SWP_EXCLUSIVE else 2)
        pfn = memory.alloc_page()
        assert pfn is not None
        memory.add_to_swap_cache(slot, pfn)
        memory.put_page(pfn)
        taken = True
    return taken


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


def hugetlb_pool(given: Given) -> bool:
    """A bus error in a hugetlb area was met when the pool was empty."""
    if not any(
        fault.ret & VM_FAULT_ERROR == VM_FAULT_SIGBUS and _in_hugetlb(given, fault.a)
        for fault in given.call.faults
    ):
        return False
    fresh = 0
    for (level, va), entry in given.call.after.items():
        leaf = level in (2, 3) and entry & P and entry & PSE
        if leaf and _in_hugetlb(given, va):
            fresh += given.call.before.get((level, va), 0) & PFN != entry & PFN
    given.mm.memory.hugetlb_left = fresh
    return True


def _in_hugetlb(given: Given, va: int) -> bool:
    vma = given.mm.vmas.lookup(va)
    return vma is not None and vma.is_hugetlb


def device_owner(given: Given) -> bool:
    """A device-private page that the call gave to its caller is the caller's; any other is a stranger's."""
    mm, kernel = given.mm, given.mm.kernel
    types = (kernel.swp_device_write, kernel.swp_device_read)
    private = {
        swp_pfn(mm, entry)
        for (level, _), entry in given.call.before.items()
        if level == 1 and entry & ~NONE and not entry & (P | PROTNONE) and entry >> 59 in types
    }
    words = given.call.words("first")
    owned = sorted(private & set((words & ~np.uint64(_FLAGS)).tolist()))
    if not owned:
        return False
    rows = [(pfn, pfn + 1, OWNER) for pfn in owned]
    mm.device_private = np.array(rows, dtype=np.uint64)
    return True


def migrated_page(given: Given) -> bool:
    """The migration that a call waited for moved all pages that were under migration, or left them.

    Where a page went is seen after the call; all migration entries of the range belong to one migration.
    """
    mm = given.mm
    moves = []
    destinations: dict[int, int] = {}
    for (level, va), entry in given.call.before.items():
        if level > 2 or not entry & ~NONE or entry & (P | PROTNONE | PSE):
            continue
        if entry >> 59 not in (
            mm.kernel.swp_migration_read,
            mm.kernel.swp_migration_read_exclusive,
            mm.kernel.swp_migration_write,
        ):
            continue
        after = given.call.after.get((level, va), 0)
        went = pfn_of(after) if level == 1 else huge_pfn_of(after)
        # An entry that a write left shows the copy, if there was one, not where the page went.
        copied = (va, va + (4096 if level == 1 else PMD_SIZE)) in given.cleared
        stayed = not after & P or copied or went == swp_pfn(mm, entry)
        moves.append(Move(mm, va, level, None if stayed else went))
        if not stayed:
            destinations[swp_pfn(mm, entry)] = went
    if not moves:
        return False
    for pfn in [*destinations, *destinations.values()]:
        mm.memory.pages.set_flags(pfn, PG_ADOPTED)
        mm.memory.pages.get(pfn)
    mm.memory.migrations.append(Migration(mm.memory, moves, destinations=destinations))
    return len(moves) > 1


#: In the order in which they are applied.
FACTS: list[Fact] = [
    device_owner,
    same_file,
    visible_page_cache,
    file_size,
    page_cache,
    page_cache_beside,
    hugetlb_page_cache,
    file_page_in_swap,
    swap_cache,
    exclusive_page,
    exclusive_huge_page,
    hugetlb_pool,
    migrated_page,
]
