"""mprotect, and the change of protection that NUMA hints and userfaultfd make too.

Source: mm/mprotect.c:do_mprotect_pkey, mprotect_fixup, change_protection; mm/huge_memory.c:change_huge_pmd;
mm/hugetlb.c:hugetlb_change_protection; mm/mempolicy.c:change_prot_numa (v6.1).
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOMEM
from typing import TYPE_CHECKING

from gpuhmm.memory.fault.write_upgrade import can_change_pmd_writable, can_change_pte_writable
from gpuhmm.memory.mmap import cuts_hugetlb, invalid_range
from gpuhmm.memory.pages.page import PG_KSM
from gpuhmm.memory.pages.rmap import huge_normal_page, vm_normal_page
from gpuhmm.memory.pmd_range import PmdPart, split_to_ptes, walk_pmd_range
from gpuhmm.mm.entry import (
    NONE,
    PROTNONE,
    PSE,
    RW,
    SWP_EXCLUSIVE,
    P,
    mkwrite,
    pmd_modify,
    pte_modify,
    swp_type_of,
    swp_with_type,
)
from gpuhmm.mm.mmap_lock import write_locked
from gpuhmm.mm.notifier import MMU_NOTIFY_PROTECTION_VMA
from gpuhmm.mm.vma import VM_EXEC, VM_READ, VM_SHARED, VM_WRITE, Vma

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

_PROT = VM_READ | VM_WRITE | VM_EXEC

#: What becomes of an entry: space, area, address, entry, level -> the new entry.
Change = Callable[["AddressSpace", Vma, int, int, int], int]


@write_locked
def mprotect(mm: AddressSpace, start: int, end: int, prot: int) -> int:
    """Set VM_READ, VM_WRITE and VM_EXEC of ``[start, end)`` and of its entries.

    0; -EINVAL for a range or ``prot`` that cannot be, -ENOMEM if there is a gap: areas below it are
    changed already.  Event PROTECTION_VMA where areas are populated.
    """
    if invalid_range(mm, start, end) or prot & ~_PROT or cuts_hugetlb(mm, start, end):
        return -EINVAL
    va = start
    while va < end:
        vma = mm.vmas.lookup(va)
        if vma is None:
            return -ENOMEM
        past = min(vma.end, end)
        if vma.flags & _PROT != prot:
            mm.vmas.set_flags(va, past, ~_PROT, prot)
            changed = mm.vmas.lookup(va)
            assert changed is not None
            change_protection(mm, changed, va, past, mprotect_entry)
        va = past
    return 0


def change_protection(mm: AddressSpace, vma: Vma, start: int, end: int, change: Change) -> int:
    """Change the entries of ``[start, end)`` of one area; return how many.

    Event PROTECTION_VMA for every 1 GiB in which there is something, from the first populated 2 MiB on.
    """
    if vma.is_hugetlb:
        with mm.subscriptions.invalidate_range(start, end, event=MMU_NOTIFY_PROTECTION_VMA):
            return _change_hugetlb(mm, vma, start, end, change)
    changed = 0
    for first, past in _populated(mm, start, end):
        with mm.subscriptions.invalidate_range(first, past, event=MMU_NOTIFY_PROTECTION_VMA):
            for part in walk_pmd_range(mm, first, past):
                changed += _change_pmd(mm, vma, part, change)
    return changed


def _populated(mm: AddressSpace, start: int, end: int) -> list[tuple[int, int]]:
    """Return, for every 1 GiB, from where its first populated PMD begins to where it ends."""
    found: dict[int, tuple[int, int]] = {}
    for part in walk_pmd_range(mm, start, end):
        pud = part.va >> 30
        found.setdefault(pud, (part.va, min((pud + 1) << 30, end)))
    return list(found.values())


def _change_pmd(mm: AddressSpace, vma: Vma, part: PmdPart, change: Change) -> int:
    if not part.is_table:
        if part.is_whole:
            new = change(mm, vma, part.va, part.pmd, 2)
            mm.page_tables.set_entry(part.va, 2, new)
            return 512 * (new != part.pmd)
        if not split_to_ptes(mm, vma, part.va):
            return 0
    changed = 0
    for va in part.ptes:
        pte = mm.entry(va, 1)
        if not pte & ~NONE:
            continue
        new = change(mm, vma, va, pte, 1)
        if new != pte:
            mm.page_tables.set_entry(va, 1, new)
            changed += 1
    return changed


def _change_hugetlb(mm: AddressSpace, vma: Vma, start: int, end: int, change: Change) -> int:
    level = 3 if vma.page_shift == 30 else 2
    changed = 0
    for va in range(start, end, 1 << vma.page_shift):
        entry = mm.entry(va, level)
        if entry & (P | PROTNONE):
            new = change(mm, vma, va, entry, level)
            changed += new != entry
            mm.page_tables.set_entry(va, level, new)
    return changed


def mprotect_entry(mm: AddressSpace, vma: Vma, va: int, entry: int, level: int) -> int:
    """Return an entry under the protection that its area has by now.

    RW is given back if no fault would have to notice (can_change_pte_writable), before v6.2 not to huge
    pages.
    """
    if not entry & (P | PROTNONE):
        return _swap_entry(mm, entry)
    new = _modified(mm, vma, entry, vma.vm_page_prot, level)
    if vma.is_hugetlb or not vma.flags & VM_WRITE or new & RW:
        return new
    can_change = can_change_pte_writable if level == 1 else can_change_pmd_writable
    return mkwrite(mm.kernel, new) if can_change(mm, vma, va, new) else new


def _modified(mm: AddressSpace, vma: Vma, entry: int, prot: int, level: int) -> int:
    if level > 1 and not vma.is_hugetlb:
        return pmd_modify(mm.kernel, entry, prot)
    return pte_modify(mm.kernel, entry, prot, PSE if level > 1 else 0)


def write_upgraded(mm: AddressSpace, vma: Vma, va: int, entry: int, level: int) -> int:
    """Return the entry writable where no fault has to notice the next write: from v6.2 on."""
    can_change = can_change_pte_writable if level == 1 else can_change_pmd_writable
    upgrades = mm.kernel.manual_write_upgrade and not vma.is_hugetlb
    return mkwrite(mm.kernel, entry) if upgrades and can_change(mm, vma, va, entry) else entry


def _swap_entry(mm: AddressSpace, entry: int) -> int:
    """Return a migration or device entry without its right to write (change_pte_range)."""
    kernel = mm.kernel
    readable = {
        kernel.swp_migration_write: (
            kernel.swp_migration_read_exclusive if kernel.has_anon_exclusive else kernel.swp_migration_read
        ),
        kernel.swp_device_write: kernel.swp_device_read,
        kernel.swp_device_exclusive_write: kernel.swp_device_exclusive_read,
    }
    swp_type = swp_type_of(entry)
    if swp_type not in readable:
        return entry
    return swp_with_type(entry, readable[swp_type]) & ~SWP_EXCLUSIVE


@write_locked
def change_prot_numa(mm: AddressSpace, start: int, end: int) -> int:
    """Make the entries of ``[start, end)`` PROTNONE, as NUMA balancing does to see who uses them.

    Return how many; -EINVAL for a range that cannot be.  Zero pages, KSM pages, private pages that others
    hold and what is PROTNONE already stay.  Events as for :func:`mprotect`.
    """
    if invalid_range(mm, start, end):
        return -EINVAL
    changed = 0
    for vma in mm.vmas.overlapping(start, end):
        if vma.flags & _PROT and not vma.is_hugetlb:
            first, past = max(start, vma.start), min(end, vma.end)
            changed += change_protection(mm, vma, first, past, numa_entry)
    return changed


def numa_entry(mm: AddressSpace, vma: Vma, va: int, entry: int, level: int) -> int:
    """Return the entry as a NUMA hint: without access, before v6.2 remembering whether it was writable."""
    if not entry & P:
        return entry
    if level == 1:
        pfn = vm_normal_page(mm, vma, va, entry)
        if pfn is None or mm.memory.pages.flags(pfn) & PG_KSM:
            return entry
        if not vma.flags & VM_SHARED and mm.memory.pages.refcount(pfn) != 1:
            return entry  # shared copy-on-write: whoever writes gets a page of its own anyway
    elif huge_normal_page(mm, vma, va, entry) is None:
        return entry
    hint = _modified(mm, vma, entry, PROTNONE, level)
    return hint | RW if entry & RW and not mm.kernel.manual_write_upgrade else hint
