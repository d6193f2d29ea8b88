"""madvise.

Source: mm/madvise.c:do_madvise, madvise_dontneed_single_vma, madvise_free_pte_range; mm/memory-failure.c
(v6.1).
"""

from __future__ import annotations

from errno import EINVAL, ENOMEM
from typing import TYPE_CHECKING

from gpuhmm.memory.hwpoison import soft_poison_range
from gpuhmm.memory.mmap import cuts_hugetlb, invalid_range
from gpuhmm.memory.pages.page import PG_LAZYFREE, PG_SWAPCACHE
from gpuhmm.memory.pages.rmap import huge_normal_page, vm_normal_page
from gpuhmm.memory.pmd_range import split_to_ptes, walk_pmd_range
from gpuhmm.memory.vmscan import swap_out
from gpuhmm.memory.zap import drop_entry, zap_page_range
from gpuhmm.mm.entry import NONE, PROTNONE, A, P, swp_type_of
from gpuhmm.mm.mmap_lock import write_locked
from gpuhmm.mm.vma import VM_HUGEPAGE, VM_LOCKED, VM_NOHUGEPAGE, VM_PFNMAP, VM_SHARED, Vma

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

MADV_DONTNEED = 4
MADV_FREE = 8
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_PAGEOUT = 21
MADV_HWPOISON = 100

_ADVICE = (MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_PAGEOUT, MADV_HWPOISON)


@write_locked
def madvise(mm: AddressSpace, start: int, end: int, advice: int) -> int:
    """Do what ``advice``, one of MADV_*, asks for in ``[start, end)``.

    0; -EINVAL for a range, an advice or an area for which it cannot be; -ENOMEM if there is a gap, areas
    beyond it are advised all the same.  DONTNEED, FREE, PAGEOUT and HWPOISON fire event CLEAR.
    """
    if advice not in _ADVICE or invalid_range(mm, start, end) or cuts_hugetlb(mm, start, end):
        return -EINVAL
    if advice == MADV_HWPOISON:
        return soft_poison_range(mm, start, end)
    ret, va = 0, start
    while va < end:
        vma = mm.vmas.find(va)
        if vma is None or vma.start >= end:
            return -ENOMEM
        if vma.start > va:
            ret, va = -ENOMEM, vma.start
        past = min(vma.end, end)
        error = _advise(mm, vma, va, past, advice)
        if error:
            return error
        va = past
    return ret


def _advise(mm: AddressSpace, vma: Vma, start: int, end: int, advice: int) -> int:
    if advice == MADV_HUGEPAGE:
        mm.vmas.set_flags(start, end, ~VM_NOHUGEPAGE, VM_HUGEPAGE)
    elif advice == MADV_NOHUGEPAGE:
        mm.vmas.set_flags(start, end, ~VM_HUGEPAGE, VM_NOHUGEPAGE)
    elif advice == MADV_PAGEOUT:
        return min(swap_out(mm, start, end), 0)
    elif advice == MADV_DONTNEED:
        if vma.flags & (VM_LOCKED | VM_PFNMAP):
            return -EINVAL
        with mm.subscriptions.invalidate_range(start, end):
            zap_page_range(mm, vma, start, end)
    else:
        return _madvise_free(mm, vma, start, end)
    return 0


def _madvise_free(mm: AddressSpace, vma: Vma, start: int, end: int) -> int:
    """Let the contents of anonymous memory be dropped: entries become clean and old, swap is given back."""
    if not vma.is_anonymous or vma.flags & (VM_SHARED | VM_LOCKED | VM_PFNMAP):
        return -EINVAL
    with mm.subscriptions.invalidate_range(start, end):
        for part in walk_pmd_range(mm, start, end):
            if not part.is_table:
                if part.is_whole:
                    _free_huge_pmd(mm, vma, part.va, part.pmd)
                    continue
                if not part.pmd & (P | PROTNONE) or not split_to_ptes(mm, vma, part.va):
                    continue
            for va in part.ptes:
                _free_pte(mm, vma, va)
    return 0


def _free_huge_pmd(mm: AddressSpace, vma: Vma, va: int, pmd: int) -> None:
    pfn = huge_normal_page(mm, vma, va, pmd) if pmd & P else None
    if pfn is not None and mm.memory.pages.mapcount(pfn) == 1:
        mm.page_tables.set_entry(va, 2, pmd & ~(A | mm.kernel.dirty_bits))


def _free_pte(mm: AddressSpace, vma: Vma, va: int) -> None:
    pte = mm.entry(va, 1)
    if not pte & ~NONE:
        return
    if not pte & (P | PROTNONE):
        if swp_type_of(pte) < mm.kernel.max_swapfiles:
            mm.page_tables.set_entry(va, 1, 0)
            drop_entry(mm, vma, va, pte)
        return
    pfn = vm_normal_page(mm, vma, va, pte)
    pages = mm.memory.pages
    if pfn is None or pages.mapcount(pfn) != 1 or pages.page(pfn).order:
        return
    if pages.flags(pfn) & PG_SWAPCACHE and not mm.memory.free_swap(pfn):
        return
    pages.set_flags(pfn, PG_LAZYFREE)
    mm.page_tables.set_entry(va, 1, pte & ~(A | mm.kernel.dirty_bits))
