"""An entry of a page table as a Python int: its bits, and how it is made, changed and read.

The bits are those of :mod:`gpuhmm.mm.x86`, whose uint64 the walks use; what changes one entry at a time
works on ints, which hold 64 bits, too, and do not wrap.

Source: arch/x86/include/asm/pgtable.h, pgtable_64.h; include/linux/pgtable.h, swapops.h (v6.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuhmm.mm import x86

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace
    from gpuhmm.mm.profile import KernelProfile

P = int(x86.PAGE_PRESENT)
RW = int(x86.PAGE_RW)
USER = int(x86.PAGE_USER)
A = int(x86.PAGE_ACCESSED)
D = int(x86.PAGE_DIRTY)
PSE = int(x86.PAGE_PSE)
PROTNONE = int(x86.PAGE_PROTNONE)
SPECIAL = int(x86.PAGE_SPECIAL)
UFFD_WP = int(x86.PAGE_UFFD_WP)
SOFT_DIRTY = int(x86.PAGE_SOFT_DIRTY)
NX = int(x86.PAGE_NX)
PFN = int(x86.PTE_PFN_MASK)
HUGE_PFN = int(x86.PMD_PFN_MASK)
#: What an entry may keep and still be none: ``not entry & ~NONE``.
NONE = int(x86.KNL_ERRATUM_MASK)
TABLE = int(x86.PAGE_TABLE)
#: pte_mkdirty sets the hardware's and the software's dirty bit.
DIRTY = D | SOFT_DIRTY

#: Software bits of a swap entry (arch/x86/include/asm/pgtable_types.h); EXCLUSIVE since v5.19.
SWP_SOFT_DIRTY = 1 << 1
SWP_UFFD_WP = 1 << 2
SWP_EXCLUSIVE = 1 << 3
#: Offsets of PTE markers (include/linux/swapops.h); which of them a kernel has: ``pte_marker_mask``.
PTE_MARKER_UFFD_WP = 1
PTE_MARKER_POISONED = 2
PTE_MARKER_GUARD = 4

SWP_SOFTWARE = SWP_SOFT_DIRTY | SWP_UFFD_WP | SWP_EXCLUSIVE

#: What a change of protection leaves (_PAGE_CHG_MASK) besides DEVMAP and SAVED_DIRTY, which go by kernel.
_CHANGE_MASK = PFN | A | D | SPECIAL | UFFD_WP | SOFT_DIRTY | int(x86.PAGE_PWT | x86.PAGE_PCD)

PMD_SIZE = int(x86.PMD_SIZE)

_ALL_ONES = int(x86.ALL_ONES)


def is_none(entry: int) -> bool:
    """pte_none, pmd_none and kin."""
    return not entry & ~NONE


# -- entries that map a page ------------------------------------------------------------------


def mk_pte(pfn: int, prot: int) -> int:
    """Return the entry of a page under a protection; the PFN is inverted where P is not set."""
    field = pfn << 12
    return (field if prot & P else ~field & PFN) | prot


def pfn_of(entry: int) -> int:
    """Return the PFN of a present or PROTNONE entry of 4 KiB, or of a hugetlb entry, which is read as one."""
    return ((entry if entry & P else ~entry) & PFN) >> 12


def huge_pfn_of(entry: int) -> int:
    """Return the PFN of a huge entry of 2 MiB."""
    return ((entry if entry & P else ~entry) & HUGE_PFN) >> 12


def pte_modify(kernel: KernelProfile, entry: int, prot: int, keep: int = 0) -> int:
    """Return an entry under another protection (pte_modify); ``keep`` are more bits that stay.

    PTEs and hugetlb entries, which are modified as PTEs are.
    """
    return _modify(kernel, entry, prot, keep, PFN)


def pmd_modify(kernel: KernelProfile, entry: int, prot: int) -> int:
    """Return a huge PMD under another protection."""
    return _modify(kernel, entry, prot, PSE, HUGE_PFN)


def save_dirty(kernel: KernelProfile, entry: int) -> int:
    """Return the entry with its dirty bit where the kernel has it: D with RW, SAVED_DIRTY without.

    What pte_mksaveddirty and pte_clear_saveddirty do whenever RW or D of an entry changes; kernels before
    v6.6 have D alone.  Entries of shadow stacks, D without RW, do not come here.
    """
    saved = kernel.page_saved_dirty
    if not saved or not entry & (D | saved):
        return entry
    return entry & ~saved | D if entry & RW else entry & ~D | saved


def wrprotect(kernel: KernelProfile, entry: int) -> int:
    """Return the entry without RW (pte_wrprotect)."""
    return save_dirty(kernel, entry & ~RW)


def mkwrite(kernel: KernelProfile, entry: int) -> int:
    """Return the entry with RW (pte_mkwrite)."""
    return save_dirty(kernel, entry | RW)


def _modify(kernel: KernelProfile, entry: int, prot: int, keep: int, field: int) -> int:
    mask = _CHANGE_MASK | kernel.page_devmap | kernel.page_saved_dirty
    upright = entry if entry & P else entry ^ field
    changed = (upright & (mask | keep)) | (prot & ~mask)
    if (entry | changed) & RW:  # a shadow stack's entry keeps D
        changed = save_dirty(kernel, changed)
    return changed if changed & P else changed ^ field


# -- entries that point to a table ------------------------------------------------------------


def table_pfn(entry: int) -> int:
    """Return the PFN of the page-table page that an upper entry points to."""
    return (entry & PFN) >> 12


def is_leaf(entry: int, level: int, huge_bits: int) -> bool:
    """True for what maps a page at level 2 or 3 (``KernelProfile.huge_bits``); above there are no leaves."""
    return level <= 3 and bool(entry & huge_bits)


def points_to_table(entry: int, level: int, huge_bits: int) -> bool:
    """True for an upper entry that is present and no leaf, so that a table stands behind it."""
    return bool(entry & P) and not is_leaf(entry, level, huge_bits)


# -- entries that are not present -------------------------------------------------------------


def encode_swap(swp_type: int, offset: int) -> int:
    """Return the entry of swap ``swp_type`` (5 bits) and ``offset`` (50 bits), for a PTE or a PMD.

    ValueError for a type or an offset beyond that, as for a type that a kernel's config lacks.  Source:
    arch/x86/include/asm/pgtable_64.h:__swp_entry (v5.18).
    """
    if not 0 <= swp_type < 32 or not 0 <= offset < 1 << 50:
        raise ValueError(
            "a swap type must be below 32 and an offset below 2^50 "
            f"(got type {swp_type}, offset {offset:#x}: "
            "type 255 is one that the kernel or its config lacks)"
        )
    return ((~offset << 14 & _ALL_ONES) >> 5) | swp_type << 59


def swp_type_of(entry: int) -> int:
    """Return the swap type of an entry that is not present."""
    return entry >> 59


def swp_offset(entry: int) -> int:
    """Return all 50 bits of a swap entry's offset."""
    return (~entry << 5 & _ALL_ONES) >> 14


def swp_pfn(mm: AddressSpace, entry: int) -> int:
    """Return the PFN in a migration, hwpoison or device entry (swp_offset_pfn)."""
    return swp_offset(entry) & ((1 << mm.kernel.swp_pfn_bits[mm.levels - 4]) - 1)


def lasting_marker(kernel: KernelProfile, entry: int) -> int:
    """Return the bits of a PTE marker that outlive userfaultfd: poison and guard, if the kernel has them."""
    return swp_offset(entry) & kernel.pte_marker_mask & (PTE_MARKER_POISONED | PTE_MARKER_GUARD)


def swp_with_type(entry: int, swp_type: int) -> int:
    """Return a swap entry under another type: the same offset and software bits."""
    return encode_swap(swp_type, swp_offset(entry)) | (entry & SWP_SOFTWARE)


def swp_software(entry: int) -> int:
    """Return soft-dirty and uffd-wp of a swap entry as the bits of a present one."""
    return (SOFT_DIRTY if entry & SWP_SOFT_DIRTY else 0) | (UFFD_WP if entry & SWP_UFFD_WP else 0)


def swp_flags(entry: int) -> int:
    """Return soft-dirty and uffd-wp of a present entry as the bits of a swap entry."""
    return (SWP_SOFT_DIRTY if entry & SOFT_DIRTY else 0) | (SWP_UFFD_WP if entry & UFFD_WP else 0)
