"""What the CPU does to memory: touch it, load, store, and pin pages for somebody else.

Source: arch/x86/mm/fault.c:do_user_addr_fault; mm/gup.c (v6.1).
"""

from __future__ import annotations

from errno import EFAULT, EINVAL, ENOMEM
from typing import TYPE_CHECKING

import numpy as np

from gpuhmm.memory.migrate_device import migrate_to_ram
from gpuhmm.memory.mmap import invalid_range
from gpuhmm.memory.pages.page import GUP_PIN_COUNTING_BIAS, PG_ANON, PG_ANON_EXCLUSIVE
from gpuhmm.mm.entry import RW, A, D, P, table_pfn
from gpuhmm.mm.handler import (
    FAULT_FLAG_UNSHARE,
    FAULT_FLAG_WRITE,
    VM_FAULT_ERROR,
    VM_FAULT_HWPOISON,
    VM_FAULT_HWPOISON_LARGE,
    VM_FAULT_OOM,
)
from gpuhmm.mm.mmap_lock import write_locked
from gpuhmm.mm.tables import Words
from gpuhmm.mm.vma import VM_ACCESS_FLAGS, VM_READ, VM_SHARED, VM_WRITE
from gpuhmm.mm.x86 import level_shift

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

#: Linux's number; Python names it on Linux of some architectures only.
EHWPOISON = 133

#: Faults in a row that one access may take before the model must be wrong.
_MAX_FAULTS = 16


@write_locked
def access(mm: AddressSpace, va: int, write: bool = False) -> int:
    """Touch ``va`` as the CPU does; return the PFN that it reaches.

    -EFAULT where a program would get SIGSEGV or SIGBUS, -ENOMEM if memory ran out, -EHWPOISON for a
    poisoned page.  The hardware sets A, and D on a write.
    """
    for _ in range(_MAX_FAULTS):
        vma = mm.vmas.lookup(va)
        if vma is None or not vma.flags & (VM_WRITE if write else VM_ACCESS_FLAGS):
            return -EFAULT
        if not write and not vma.flags & VM_READ and not vma.flags & VM_WRITE:
            return -EFAULT
        level, entry = leaf_entry(mm, va)
        if entry & P and (entry & RW or not write):
            touched = entry | A | (D if write else 0)
            if touched != entry:
                mm.page_tables.set_entry(va, level, touched)
            return _pfn_at(entry, level, va)
        ret = mm.faults.handle_mm_fault(mm, vma, va & -4096, FAULT_FLAG_WRITE if write else 0)
        if ret & VM_FAULT_ERROR:
            return _errno(ret)
    raise RuntimeError(f"an access must succeed after some faults (va {va:#x} did not after {_MAX_FAULTS})")


def leaf_entry(mm: AddressSpace, va: int) -> tuple[int, int]:
    """Return the level and the value of the entry that maps ``va``, or of the first that is empty."""
    level = mm.page_tables.lowest(va)
    return level, mm.entry(va, level)


def _pfn_at(entry: int, level: int, va: int) -> int:
    pages = 1 << (level_shift(level) - 12)
    pfn = table_pfn(entry)
    return pfn // pages * pages + (va >> 12) % pages


def _errno(ret: int) -> int:
    if ret & VM_FAULT_OOM:
        return -ENOMEM
    return -EHWPOISON if ret & (VM_FAULT_HWPOISON | VM_FAULT_HWPOISON_LARGE) else -EFAULT


@write_locked
def load(mm: AddressSpace, va: int) -> int:
    """Return the word that was stored last in the page at ``va``, 0 if none was, or a negative errno."""
    pfn = access(mm, va)
    if pfn < 0 or pfn == mm.zero_pfn:
        return min(pfn, 0)
    return mm.memory.pages.content(pfn)


@write_locked
def store(mm: AddressSpace, va: int, value: int) -> int:
    """Store a word, below 2^64, in the page at ``va``; 0 or a negative errno."""
    if not 0 <= value < 1 << 64:
        raise ValueError(f"a word must fit in 64 unsigned bits (got {value:#x})")
    pfn = access(mm, va, True)
    if pfn < 0:
        return pfn
    mm.memory.pages.set_content(pfn, value)
    return 0


@write_locked
def pin_user_pages(
    mm: AddressSpace, start: int, npages: int, *, write: bool = True, longterm: bool = False
) -> Words | int:
    """Pin pages for a device; return their PFNs, uint64[npages], or a negative errno and nothing pinned.

    An anonymous page is made exclusive first, for a read by copying without granting the write.  With
    ``longterm`` pages of coherent device memory are brought back to system memory.
    """
    if invalid_range(mm, start, start + npages * 4096):
        return -EINVAL
    pfns: list[int] = []
    for va in range(start, start + npages * 4096, 4096):
        pfn = _pin(mm, va, write, longterm)
        if pfn < 0:
            unpin_user_pages(mm, np.array(pfns, dtype=np.uint64))
            return pfn
        pfns.append(pfn)
    return np.array(pfns, dtype=np.uint64)


def _pin(mm: AddressSpace, va: int, write: bool, longterm: bool) -> int:
    pfn = access(mm, va, write)
    if pfn < 0:
        return pfn
    vma = mm.vmas.lookup(va)
    assert vma is not None
    device = mm.memory.device_of(pfn)
    if longterm and device is not None:
        migrate_to_ram(mm, va, va + 4096, device)
        pfn = access(mm, va, write)
        if pfn < 0:
            return pfn
    pages = mm.memory.pages
    flags = pages.flags(pages.head(pfn)) | pages.flags(pfn)
    shared = flags & PG_ANON and not flags & PG_ANON_EXCLUSIVE and mm.kernel.has_anon_exclusive
    if not write and not vma.flags & VM_SHARED and (shared or pfn == mm.zero_pfn) and not vma.is_hugetlb:
        ret = mm.faults.handle_mm_fault(mm, vma, va, FAULT_FLAG_UNSHARE)
        if ret & VM_FAULT_ERROR:
            return _errno(ret)
        pfn = access(mm, va)
        if pfn < 0:
            return pfn
    if pages.refcount(pfn):
        pages.get(pfn, GUP_PIN_COUNTING_BIAS)
    return pfn


@write_locked
def unpin_user_pages(mm: AddressSpace, pfns: Words) -> None:
    """Let pages go that :func:`pin_user_pages` pinned."""
    for pfn in pfns.tolist():
        if mm.memory.pages.refcount(pfn):
            mm.memory.put_page(pfn, GUP_PIN_COUNTING_BIAS)
