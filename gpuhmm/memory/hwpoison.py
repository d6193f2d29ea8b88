"""Pages whose hardware failed.

Source: mm/memory-failure.c:memory_failure, hwpoison_user_mappings; mm/madvise.c:madvise_inject_error
(v6.1).
"""

from __future__ import annotations

from errno import EBUSY
from typing import TYPE_CHECKING

from gpuhmm.memory.fault.huge import split_huge_pmd
from gpuhmm.memory.fault.vm_fault import Fault
from gpuhmm.memory.gup import access, leaf_entry
from gpuhmm.memory.pages.page import PG_HUGETLB, PG_HWPOISON
from gpuhmm.memory.pages.rmap import page_remove_rmap, rmap_walk
from gpuhmm.mm.entry import NONE, PROTNONE, PSE, P, encode_swap, pfn_of, table_pfn
from gpuhmm.mm.mmap_lock import write_locked

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace


def soft_poison_range(mm: AddressSpace, start: int, end: int) -> int:
    """Let the pages of ``[start, end)`` fail, touching them first; 0 or a negative errno."""
    va = start
    while va < end:
        pfn = access(mm, va)
        if pfn < 0:
            return pfn
        vma = mm.vmas.lookup(va)
        assert vma is not None
        ret = memory_failure(mm, va)
        if ret:
            return ret
        va = (va & -(1 << vma.page_shift)) + (1 << vma.page_shift)
    return 0


@write_locked
def memory_failure(mm: AddressSpace, va: int) -> int:
    """Let the page that ``va`` maps fail: every entry of it becomes a hwpoison entry, event CLEAR over each.

    0; -EBUSY for a page that has no descriptor, such as the zero page.  The page itself is never used again.
    """
    level, entry = leaf_entry(mm, va)
    vma = mm.vmas.lookup(va)
    memory = mm.memory
    if vma is None or not entry & P:
        return -EBUSY
    if level == 2 and not vma.is_hugetlb:
        if not vma.is_anonymous or not split_huge_pmd(Fault(mm, vma, va, 0)):
            return -EBUSY
        level, entry = leaf_entry(mm, va)
    pfn = pfn_of(entry) if level == 1 else table_pfn(entry) >> (vma.page_shift - 12) << (vma.page_shift - 12)
    if pfn == mm.zero_pfn or not memory.pages.refcount(pfn):
        return -EBUSY
    hugetlb = bool(memory.pages.flags(pfn) & PG_HUGETLB)
    if not hugetlb and memory.pages.page(pfn).order:
        memory.split_huge_page(pfn)
    size = 1 << (vma.page_shift if hugetlb else 12)
    poison = encode_swap(mm.kernel.swp_hwpoison, pfn)
    memory.pages.get(pfn)  # nobody may ever have it again
    memory.pages.set_flags(pfn, PG_HWPOISON)
    for other, _, at in list(rmap_walk(memory, pfn)):
        if not _maps(other, at, level, pfn):
            continue
        with other.subscriptions.invalidate_range(at, at + size):
            other.page_tables.set_entry(at, level, poison)
            page_remove_rmap(memory, pfn)
            memory.put_page(pfn)
    return 0


def _maps(mm: AddressSpace, va: int, level: int, pfn: int) -> bool:
    entry = mm.entry(va, level)
    if not entry & ~NONE or not entry & (P | PROTNONE) or (level > 1 and not entry & PSE):
        return False
    return pfn_of(entry) == pfn
