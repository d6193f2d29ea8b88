"""Whether an entry without RW may be writable in its area, so that no fault has to notice the next write.

Source: mm/mprotect.c:can_change_pte_writable; mm/huge_memory.c:can_change_pmd_writable (v6.12).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuhmm.memory.pages.page import PG_ANON, PG_ANON_EXCLUSIVE
from gpuhmm.memory.pages.rmap import huge_normal_page, vm_normal_page
from gpuhmm.mm.entry import SOFT_DIRTY, UFFD_WP, P
from gpuhmm.mm.vma import VM_SHARED, VM_UFFD_WP, VM_WRITE, Vma

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

_EXCLUSIVE = PG_ANON | PG_ANON_EXCLUSIVE


def can_change_pte_writable(mm: AddressSpace, vma: Vma, va: int, pte: int) -> bool:
    """True for a PTE of the one owner of its page, and for a dirty one of shared memory."""
    if not _may_write(vma, pte):
        return False
    if vma.flags & VM_SHARED:
        return bool(pte & mm.kernel.dirty_bits)
    return _is_exclusive(mm, vm_normal_page(mm, vma, va, pte))


def can_change_pmd_writable(mm: AddressSpace, vma: Vma, va: int, pmd: int) -> bool:
    """The same of a huge entry: from v6.2 on."""
    if not mm.kernel.manual_write_upgrade or not _may_write(vma, pmd):
        return False
    if vma.flags & VM_SHARED:
        return bool(pmd & mm.kernel.dirty_bits)
    return _is_exclusive(mm, huge_normal_page(mm, vma, va, pmd))


def _may_write(vma: Vma, entry: int) -> bool:
    if not vma.flags & VM_WRITE or not entry & P or not entry & SOFT_DIRTY:
        return False
    return not (vma.flags & VM_UFFD_WP and entry & UFFD_WP)


def _is_exclusive(mm: AddressSpace, pfn: int | None) -> bool:
    return (
        pfn is not None
        and mm.memory.pages.flags(pfn) & _EXCLUSIVE == _EXCLUSIVE
        and mm.kernel.has_anon_exclusive
    )
