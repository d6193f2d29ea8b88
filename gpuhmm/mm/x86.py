"""x86-64 page-table entries as Linux stores them: bits, geometry and predicates.

Levels are numbered as the walk meets them from below: 1 PTE, 2 PMD, 3 PUD, 4 P4D (the top table
where there are four levels), 5 PGD.  Every value is ``uint64``; every predicate returns ``bool``.

Source: arch/x86/include/asm/pgtable_types.h, pgtable.h, pgtable_64.h (v5.18 to v7.3).  What differs
between them is an argument of the predicate, or in :class:`gpuhmm.mm.profile.KernelProfile`.
"""

from __future__ import annotations

import numpy as np

from gpuhmm.shared import shared

U64 = np.uint64

#: What a predicate returns: numpy's bool in plain Python, a boolean when compiled.
Truth = bool | np.bool_

ZERO = U64(0)
ONE = U64(1)
ALL_ONES = U64(0xFFFF_FFFF_FFFF_FFFF)

PAGE_SHIFT = U64(12)
PMD_SHIFT = U64(21)
PUD_SHIFT = U64(30)
P4D_SHIFT = U64(39)
PGDIR_SHIFT = U64(48)
TABLE_SHIFT = U64(9)
INDEX_MASK = U64(511)

PAGE_SIZE = U64(1 << 12)
PMD_SIZE = U64(1 << 21)
PUD_SIZE = U64(1 << 30)

PAGE_PRESENT = U64(1 << 0)
PAGE_RW = U64(1 << 1)
PAGE_USER = U64(1 << 2)
PAGE_PWT = U64(1 << 3)
PAGE_PCD = U64(1 << 4)
PAGE_ACCESSED = U64(1 << 5)
PAGE_DIRTY = U64(1 << 6)
PAGE_PSE = U64(1 << 7)
PAGE_PROTNONE = U64(1 << 8)
PAGE_SPECIAL = U64(1 << 9)
PAGE_UFFD_WP = U64(1 << 10)
PAGE_SOFT_DIRTY = U64(1 << 11)
#: DEVMAP up to v6.5; from v6.6 on SAVED_DIRTY, which no walk reads, with DEVMAP below until v6.16.
PAGE_DEVMAP = U64(1 << 58)
PAGE_NX = U64(1 << 63)

#: What Linux puts beside the PFN of a page-table page of user space, and of the kernel.
PAGE_TABLE = U64(0x67)
KERNPG_TABLE = U64(0x63)

#: Bits that an entry may keep while it still counts as none (erratum of the accessed and dirty bits).
KNL_ERRATUM_MASK = PAGE_ACCESSED | PAGE_DIRTY

PTE_PFN_MASK = U64(0x000F_FFFF_FFFF_F000)
PMD_PFN_MASK = U64(0x000F_FFFF_FFE0_0000)
PUD_PFN_MASK = U64(0x000F_FFFF_C000_0000)

#: PFNs are 40 bits wide: 52-bit physical addresses.
MAX_PFN = 1 << 40
#: No PFN at all: of the huge zero page before anybody allocated it, of a page that could not be had.
NO_PFN = 0xFFFF_FFFF_FFFF_FFFF
#: The zero page of a space whose kernel's is not known; where it lies is the kernel image's affair.
ZERO_PFN = 0x1A5F

_PRESENT_OR_PROTNONE = PAGE_PRESENT | PAGE_PROTNONE
_PMD_PRESENT = PAGE_PRESENT | PAGE_PROTNONE | PAGE_PSE
_PRESENT_OR_PSE = PAGE_PRESENT | PAGE_PSE
_UPPER_BAD_IGNORES = ~(PTE_PFN_MASK | PAGE_USER | PAGE_NX)

_SWP_TYPE_SHIFT = U64(59)
_SWP_UNUSED = U64(5)
_SWP_OFFSET_SHIFT = U64(14)


def level_shift(level: int) -> int:
    """Return log2 of the bytes that one entry of ``level`` (1 to 5) covers."""
    return 12 + 9 * (level - 1)


@shared("uint64(uint64)")
def swp_type(entry: np.uint64) -> np.uint64:
    """Return the swap type of a non-present entry."""
    return entry >> _SWP_TYPE_SHIFT


@shared("uint64(uint64)")
def swp_offset(entry: np.uint64) -> np.uint64:
    """Return the swap offset of a non-present entry, all 50 bits."""
    return (~entry << _SWP_UNUSED) >> _SWP_OFFSET_SHIFT


@shared("boolean(uint64)")
def entry_none(entry: np.uint64) -> Truth:
    """pte_none, pmd_none, pud_none and p4d_none."""
    return (entry & ~KNL_ERRATUM_MASK) == ZERO


@shared("boolean(uint64)")
def entry_present(entry: np.uint64) -> Truth:
    """pud_present, p4d_present and pgd_present: the P bit alone."""
    return (entry & PAGE_PRESENT) != ZERO


@shared("boolean(uint64)")
def pte_present(entry: np.uint64) -> Truth:
    """P or PROTNONE."""
    return (entry & _PRESENT_OR_PROTNONE) != ZERO


@shared("boolean(uint64)")
def pmd_present(entry: np.uint64) -> Truth:
    """P, PROTNONE or PSE: a PMD whose P is cleared during a split stays present."""
    return (entry & _PMD_PRESENT) != ZERO


@shared("boolean(uint64)")
def entry_protnone(entry: np.uint64) -> Truth:
    """pte_protnone and pmd_protnone (CONFIG_NUMA_BALANCING)."""
    return (entry & _PRESENT_OR_PROTNONE) == PAGE_PROTNONE


@shared("boolean(uint64, uint64)")
def pte_write(entry: np.uint64, shadow_stack: np.uint64) -> Truth:
    """pte_write: RW, or with user shadow stacks D alone (pte_shstk, v6.6); ``shadow_stack`` is D or 0."""
    return (entry & (PAGE_RW | shadow_stack)) != ZERO


@shared("boolean(uint64, uint64)")
def pmd_write(entry: np.uint64, shadow_stack: np.uint64) -> Truth:
    """pmd_write: as pte_write, but D alone counts for a PMD with PSE only (pmd_shstk, v6.6)."""
    if (entry & PAGE_PSE) != ZERO:
        return pte_write(entry, shadow_stack)
    return (entry & PAGE_RW) != ZERO


@shared("boolean(uint64)")
def pud_write(entry: np.uint64) -> Truth:
    """pud_write: RW."""
    return (entry & PAGE_RW) != ZERO


@shared("boolean(uint64, uint64)")
def entry_devmap(entry: np.uint64, devmap: np.uint64) -> Truth:
    """pte_devmap, pmd_devmap and pud_devmap; ``devmap`` is the kernel's bit, 0 where it has none."""
    return (entry & devmap) != ZERO


@shared("boolean(uint64, uint64)")
def entry_trans_huge(entry: np.uint64, devmap: np.uint64) -> Truth:
    """pmd_trans_huge and pud_trans_huge: PSE without DEVMAP."""
    return (entry & (PAGE_PSE | devmap)) == PAGE_PSE


@shared("boolean(uint64)")
def pud_huge(entry: np.uint64) -> Truth:
    """pud_huge of arch/x86/mm/hugetlbpage.c: not none, and not a plain present table."""
    return (not entry_none(entry)) and (entry & _PRESENT_OR_PSE) != PAGE_PRESENT


@shared("boolean(uint64)")
def pte_special(entry: np.uint64) -> Truth:
    """The SPECIAL software bit."""
    return (entry & PAGE_SPECIAL) != ZERO


@shared("boolean(uint64)")
def pgd_none(entry: np.uint64) -> Truth:
    """pgd_none where there are five levels; with four it is never asked."""
    return entry == ZERO


@shared("boolean(uint64)")
def pgd_bad(entry: np.uint64) -> Truth:
    """pgd_bad with PTI on: USER and NX are ignored, the rest must be exactly _KERNPG_TABLE."""
    return (entry & _UPPER_BAD_IGNORES) != KERNPG_TABLE


@shared("boolean(uint64)")
def p4d_bad(entry: np.uint64) -> Truth:
    """p4d_bad with PTI on: any bit beside _KERNPG_TABLE, USER and NX."""
    return (entry & _UPPER_BAD_IGNORES & ~KERNPG_TABLE) != ZERO


@shared("boolean(uint64, uint64)")
def pmd_bad(entry: np.uint64, ignored: np.uint64) -> Truth:
    """pmd_bad; ``ignored`` holds the flags that the kernel leaves out (USER, and A from v6.1 on)."""
    return (entry & ~pmd_pfn_mask(entry) & ~ignored) != (KERNPG_TABLE & ~ignored)


@shared("uint64(uint64)")
def pmd_pfn_mask(entry: np.uint64) -> np.uint64:
    """The bits of a PMD that hold its PFN: those of a 2 MiB page if PSE is set."""
    if (entry & PAGE_PSE) != ZERO:
        return PMD_PFN_MASK
    return PTE_PFN_MASK


@shared("uint64(uint64)")
def pud_pfn_mask(entry: np.uint64) -> np.uint64:
    """The bits of a PUD that hold its PFN: those of a 1 GiB page if PSE is set."""
    if (entry & PAGE_PSE) != ZERO:
        return PUD_PFN_MASK
    return PTE_PFN_MASK


@shared("uint64(uint64)")
def uninverted(entry: np.uint64) -> np.uint64:
    """The entry with its PFN field upright: it is stored inverted where P is 0 (L1TF).

    Source: arch/x86/include/asm/pgtable-invert.h:protnone_mask (v5.18).
    """
    if entry != ZERO and (entry & PAGE_PRESENT) == ZERO:
        return ~entry
    return entry


@shared("uint64(uint64)")
def pte_pfn(entry: np.uint64) -> np.uint64:
    """PFN of a PTE, or of a hugetlb entry, which is read as one."""
    return (uninverted(entry) & PTE_PFN_MASK) >> PAGE_SHIFT


@shared("uint64(uint64)")
def pmd_pfn(entry: np.uint64) -> np.uint64:
    """PFN of a huge PMD."""
    return (uninverted(entry) & pmd_pfn_mask(entry)) >> PAGE_SHIFT


@shared("uint64(uint64)")
def pud_pfn(entry: np.uint64) -> np.uint64:
    """PFN of a huge PUD."""
    return (uninverted(entry) & pud_pfn_mask(entry)) >> PAGE_SHIFT


@shared("uint64(uint64)")
def table_pfn(entry: np.uint64) -> np.uint64:
    """PFN of the page-table page that an upper entry points to."""
    return (entry & PTE_PFN_MASK) >> PAGE_SHIFT
