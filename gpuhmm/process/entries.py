"""Page-table entries from words of pagemap: what the kernel shows, and one rule for what it hides.

Everything that an entry holds besides its PFN follows from twelve bits of a page: nine of its pagemap
word, and the protection of its area.  The answers are worked out once for all of them and looked up.

Source: fs/proc/task_mmu.c:pte_to_pagemap_entry, mm/memory.c:wp_page_reuse (v6.18).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from gpuhmm.mm import x86
from gpuhmm.mm.profile import KernelProfile
from gpuhmm.mm.vma import VM_EXEC, VM_READ, VM_SHARED, VM_WRITE, vm_page_prot
from gpuhmm.process.pagemap import (
    PM_FILE,
    PM_MMAP_EXCLUSIVE,
    PM_PFN,
    PM_PRESENT,
    PM_SOFT_DIRTY,
    PM_SWAP,
    PM_SWAP_OFFSET_SHIFT,
    PM_SWAP_TYPE,
    PM_UFFD_WP,
    Words,
)

#: pagemap has no write bit; this is how it is inferred, in the words of output and documentation.
WRITE_RULE = (
    "pagemap does not show the write bit: a page counts as writable if its mapping is, it is not "
    "write-protected by userfaultfd, and it is either in a shared mapping or an anonymous page that "
    "this process alone maps and that is neither the zero page nor merged by KSM"
)

# The class of a page: the area that it lies in (VM_READ, VM_WRITE, VM_EXEC, VM_SHARED) and these.
AREA_PROT = VM_READ | VM_WRITE | VM_EXEC | VM_SHARED
IS_ZERO_PAGE = 0x10
IS_KSM = 0x20
IN_AREA = 0x40

_STATE_SHIFT = np.uint64(55)
_SWP_SOFT_DIRTY = np.uint64(1 << 1)
_SWP_UFFD_WP = np.uint64(1 << 2)
_SHIFTED_OFFSET = (np.uint64(14), np.uint64(5))
_TYPE_SHIFT = np.uint64(59)


def swap_entries(swp_type: Words, offset: Words) -> Words:
    """Return :func:`gpuhmm.mm.entry.encode_swap` of arrays."""
    left, right = _SHIFTED_OFFSET
    return ((~offset << left) >> right) | swp_type << _TYPE_SHIFT


def page_entries(words: Words, classes: np.ndarray, kernel: KernelProfile) -> Words:
    """Return the PTE of each page, uint64 of the shape of ``words``.

    ``words`` are of pagemap, ``classes`` uint8 of AREA_PROT, IS_ZERO_PAGE, IS_KSM and IN_AREA bits;
    ``kernel`` is the one that wrote the words.  Pages outside all areas get 0.
    """
    keep, flip = _tables()
    states = (words >> _STATE_SHIFT).astype(np.uint32) | classes.astype(np.uint32) << np.uint32(9)
    entries = ((words << x86.PAGE_SHIFT) & keep[states]) ^ flip[states]
    swapped = (words & (PM_PRESENT | PM_SWAP)) == PM_SWAP
    if swapped.any():
        swapped &= (classes & IN_AREA) != 0
        entries[swapped] = _not_present(words[swapped], kernel)
    return entries


def huge_entries(
    words: Words, classes: np.ndarray, kernel: KernelProfile, pfn_mask: np.uint64 = x86.PMD_PFN_MASK
) -> Words:
    """Return one leaf of 2 MiB or 1 GiB for each row of 4 KiB pages: uint64[n] from [n, pages].

    It is writable only if all of its pages are.  ``pfn_mask`` is what an entry without P inverts: the
    PFN of a PMD, or in hugetlb areas that of a PTE.
    """
    first = words[:, 0].copy()
    exclusive = (words & PM_MMAP_EXCLUSIVE).all(axis=1)
    first[~exclusive] &= ~PM_MMAP_EXCLUSIVE
    ptes = page_entries(first, classes[:, 0], kernel)
    inverted = (ptes & x86.PAGE_PRESENT) == 0
    ptes[inverted] ^= x86.PTE_PFN_MASK ^ pfn_mask
    return (ptes & ~x86.PAGE_SPECIAL) | x86.PAGE_PSE


def _not_present(words: Words, kernel: KernelProfile) -> Words:
    """Return the entries of pages that pagemap calls swapped.

    Type and offset are the kernel's own, whatever they mean: a swap file, a migration, device memory,
    poison, a marker.  A marker has no other bits than its offset (include/linux/swapops.h:make_pte_marker),
    though pagemap shows soft-dirty of a whole area and uffd-wp of a marker as of any page.
    """
    kind = words & PM_SWAP_TYPE
    entries = swap_entries(kind, (words & PM_PFN) >> PM_SWAP_OFFSET_SHIFT)
    flags = np.where((words & PM_SOFT_DIRTY) != 0, _SWP_SOFT_DIRTY, x86.ZERO)
    flags |= np.where((words & PM_UFFD_WP) != 0, _SWP_UFFD_WP, x86.ZERO)
    return entries | np.where(kind == np.uint64(kernel.swp_pte_marker), x86.ZERO, flags)


@cache
def _tables() -> tuple[Words, Words]:
    """Return for every state of a present page which PFN bits it keeps, and which bits are added."""
    states = np.arange(1 << 16, dtype=np.uint64)
    words = (states & np.uint64(511)) << _STATE_SHIFT
    classes = states >> np.uint64(9)
    area = np.array([vm_page_prot(prot) for prot in range(AREA_PROT + 1)], dtype=np.uint64)
    flags = area[(classes & np.uint64(AREA_PROT)).astype(np.int64)]
    rw = _writable(words, classes)
    flags[rw] |= x86.PAGE_RW | x86.PAGE_DIRTY
    flags[(words & PM_SOFT_DIRTY) != 0] |= x86.PAGE_SOFT_DIRTY
    flags[(words & PM_UFFD_WP) != 0] |= x86.PAGE_UFFD_WP
    flags[(classes & np.uint64(IS_ZERO_PAGE)) != 0] |= x86.PAGE_SPECIAL
    flags[(flags & x86.PAGE_PRESENT) == 0] |= x86.PTE_PFN_MASK  # stored inverted (L1TF)
    present = ((words & PM_PRESENT) != 0) & ((classes & np.uint64(IN_AREA)) != 0)
    return np.where(present, x86.PTE_PFN_MASK, x86.ZERO), np.where(present, flags, x86.ZERO)


def _writable(words: Words, classes: Words) -> np.ndarray:
    """WRITE_RULE, as code."""
    alone = (words & (PM_FILE | PM_MMAP_EXCLUSIVE)) == PM_MMAP_EXCLUSIVE
    alone &= (classes & np.uint64(IS_ZERO_PAGE | IS_KSM)) == 0
    shared = (classes & np.uint64(VM_SHARED)) != 0
    allowed = ((classes & np.uint64(VM_WRITE)) != 0) & ((words & PM_UFFD_WP) == 0)
    return allowed & (shared | alone)
