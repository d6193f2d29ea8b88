"""What is taken from a recording's outcome because the page tables before the call do not show it.

Every rule is a function of :class:`Given`, listed in FACTS.  It puts the fact into the page state and
returns True if it took one from the outcome that the model would not have assumed by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpuhmm.check.recorded.file_facts import (
    file_page_in_swap,
    file_size,
    hugetlb_page_cache,
    page_cache,
    page_cache_beside,
    same_file,
    visible_page_cache,
)
from gpuhmm.check.recorded.given import Given
from gpuhmm.memory.migrate import Migration, Move
from gpuhmm.memory.pages.page import PG_ADOPTED
from gpuhmm.memory.pages.swapfile import slot_of
from gpuhmm.mm.entry import (
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
    swp_type_of,
)
from gpuhmm.mm.handler import (
    VM_FAULT_ERROR,
    VM_FAULT_MAJOR,
    VM_FAULT_SIGBUS,
)
from gpuhmm.mm.notifier import MMU_NOTIFY_CLEAR, MMU_NOTIFY_MIGRATE

#: What the owner of the first device-private page in the range is called here, and everybody else.
OWNER = 0xD0D0
STRANGER = 0x5757

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
            if pte & (RW | SPECIAL | kernel.page_devmap) or not given.reused(va):
                continue
            memory.adopt(pfn_of(pte), anon=True, exclusive=True, index=index)
            taken = True
            continue
        swp_type = swp_type_of(pte)
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
            leaf = entry & (P | PROTNONE) and entry & PSE and not entry & (RW | given.mm.kernel.page_devmap)
            if not leaf or (va, va + size) in given.cleared:
                continue
            if vma.is_hugetlb:
                results = [ret for at, ret in given.first_results.items() if va <= at < va + size]
                if not any(written and not ret & VM_FAULT_ERROR for ret, written in results):
                    continue
                order, pfn = vma.page_shift - 12, pfn_of(entry)
            else:
                if not any(given.reused(at) for at in given.write_results if va <= at < va + size):
                    continue
                order, pfn = 9, huge_pfn_of(entry)
            index = vma.index(max(va, vma.start))
            given.mm.memory.adopt(pfn, order=order, anon=True, exclusive=True, index=index)
            taken = True
    return taken


def swap_cache(given: Given) -> bool:
    """A swapped page that came back without VM_FAULT_MAJOR was in the swap cache."""
    taken = False
    memory, kernel = given.mm.memory, given.mm.kernel
    for va, pte, _ in given.private_entries(1):
        if pte & (P | PROTNONE) or swp_type_of(pte) >= kernel.max_swapfiles:
            continue
        slot = slot_of(swp_type_of(pte), swp_offset(pte))
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
        if level == 1 and entry & ~NONE and not entry & (P | PROTNONE) and swp_type_of(entry) in types
    }
    words = given.call.words("first")
    owned = sorted(private & set((words & ~np.uint64(kernel.hmm_pfn_flags)).tolist()))
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
        if swp_type_of(entry) not in (
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


def no_soft_dirty(given: Given) -> bool:
    """A kernel whose PTEs are written without being soft-dirty has no CONFIG_MEM_SOFT_DIRTY: none ever is."""
    ptes = [
        entry
        for when in (given.call.before, given.call.after)
        for (level, _), entry in when.items()
        if level == 1 and entry & P
    ]
    return any(pte & RW and pte & D for pte in ptes) and not any(pte & SOFT_DIRTY for pte in ptes)


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
    no_soft_dirty,
]
