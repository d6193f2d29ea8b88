"""userfaultfd: areas whose misses and writes a program handles itself.

Faults of a walk cannot wait for that program, so there they are bus errors.

Source: fs/userfaultfd.c:userfaultfd_register; mm/userfaultfd.c:mwriteprotect_range;
mm/mprotect.c:change_pte_range (v6.1).
"""

from __future__ import annotations

from errno import EINVAL, ENOENT
from typing import TYPE_CHECKING

from gpuhmm.memory.change_protection import change_protection, write_upgraded
from gpuhmm.memory.mmap import cuts_hugetlb, invalid_range
from gpuhmm.mm.entry import NONE, PROTNONE, SWP_UFFD_WP, UFFD_WP, P, lasting_marker, swp_type_of, wrprotect
from gpuhmm.mm.mmap_lock import write_locked
from gpuhmm.mm.vma import VM_UFFD_MISSING, VM_UFFD_WP, Vma

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

UFFDIO_REGISTER_MODE_MISSING = 1
UFFDIO_REGISTER_MODE_WP = 2

_MODES = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP


@write_locked
def userfaultfd_register(mm: AddressSpace, start: int, end: int, mode: int) -> int:
    """Let a program handle misses or writes in ``[start, end)``; ``mode`` of UFFDIO_REGISTER_MODE_*.

    0; -EINVAL for a range or a mode that cannot be, and where an area is neither anonymous nor shared
    memory nor hugetlb.
    """
    if invalid_range(mm, start, end) or not mode or mode & ~_MODES or cuts_hugetlb(mm, start, end):
        return -EINVAL
    areas = mm.vmas.overlapping(start, end)
    if not areas or not all(_can_userfault(vma) for vma in areas):
        return -EINVAL
    add = VM_UFFD_MISSING if mode & UFFDIO_REGISTER_MODE_MISSING else 0
    add |= VM_UFFD_WP if mode & UFFDIO_REGISTER_MODE_WP else 0
    mm.vmas.set_flags(start, end, ~(VM_UFFD_MISSING | VM_UFFD_WP), add)
    return 0


def _can_userfault(vma: Vma) -> bool:
    return vma.file is None or vma.file.kind.name in ("shmem", "hugetlb")


@write_locked
def userfaultfd_unregister(mm: AddressSpace, start: int, end: int) -> int:
    """End what :func:`userfaultfd_register` began, and take write protection back; 0 or -EINVAL."""
    if invalid_range(mm, start, end) or cuts_hugetlb(mm, start, end):
        return -EINVAL
    for vma in mm.vmas.overlapping(start, end):
        if vma.flags & VM_UFFD_WP:
            change_protection(mm, vma, max(start, vma.start), min(end, vma.end), _resolved)
    mm.vmas.set_flags(start, end, ~(VM_UFFD_MISSING | VM_UFFD_WP), 0)
    return 0


@write_locked
def userfaultfd_writeprotect(mm: AddressSpace, start: int, end: int, enable: bool) -> int:
    """Protect the pages of ``[start, end)`` against writes, or let them be written again.

    0; -EINVAL for a range that cannot be, -ENOENT where an area is not registered for it.  Event
    PROTECTION_VMA as for mprotect.  Protection that ends leaves entries read-only until the next write.
    """
    if invalid_range(mm, start, end):
        return -EINVAL
    vma = mm.vmas.lookup(start)
    if vma is None or end > vma.end or not vma.flags & VM_UFFD_WP:
        return -ENOENT
    change_protection(mm, vma, start, end, _protected if enable else _resolved)
    return 0


def _protected(mm: AddressSpace, vma: Vma, va: int, entry: int, level: int) -> int:
    if entry & (P | PROTNONE):
        return wrprotect(mm.kernel, entry | UFFD_WP)
    if not entry & ~NONE or swp_type_of(entry) == mm.kernel.swp_pte_marker:
        return entry
    return entry | SWP_UFFD_WP


def _resolved(mm: AddressSpace, vma: Vma, va: int, entry: int, level: int) -> int:
    if entry & (P | PROTNONE):
        return write_upgraded(mm, vma, va, entry & ~UFFD_WP, level)
    if swp_type_of(entry) == mm.kernel.swp_pte_marker:
        return entry if lasting_marker(mm.kernel, entry) else 0
    return entry & ~SWP_UFFD_WP
