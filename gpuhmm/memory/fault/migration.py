"""Migration entries: what stands in a page table while a page moves, and what replaces it.

Source: mm/migrate.c:remove_migration_pte; mm/huge_memory.c:remove_migration_pmd (v6.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuhmm.mm.entry import (
    DIRTY,
    PSE,
    RW,
    A,
    encode_swap,
    mk_pte,
    save_dirty,
    swp_flags,
    swp_offset,
    swp_pfn,
    swp_software,
    swp_type_of,
)
from gpuhmm.mm.vma import VM_WRITE, Vma

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace


def is_migration_type(mm: AddressSpace, swp_type: int) -> bool:
    """True for the swap types of migration entries."""
    kernel = mm.kernel
    return swp_type in (
        kernel.swp_migration_read,
        kernel.swp_migration_read_exclusive,
        kernel.swp_migration_write,
    )


def remove_migration_pte(
    mm: AddressSpace, vma: Vma, va: int, level: int, pfn: int | None = None, *, dirty: bool = True
) -> None:
    """Put a present entry in place of the migration entry of ``level`` over ``va``.

    ``pfn`` is where the page went, None if it stayed; ``dirty`` says whether the page is dirty, without
    which a dirty entry is not restored as one.
    """
    entry = mm.entry(va, level)
    kernel = mm.kernel
    prot = vma.vm_page_prot
    bits = kernel.swp_pfn_bits[mm.levels - 4]
    if bits < 50:  # v6.1 keeps young and dirty above the PFN
        offset = swp_offset(entry)
        prot = prot if offset >> bits & 1 else prot & ~A
        prot |= DIRTY if dirty and offset >> (bits + 1) & 1 else 0
    else:
        prot &= ~A  # before, every page came back old
    if swp_type_of(entry) == kernel.swp_migration_write and vma.flags & VM_WRITE:
        prot |= RW
    new = save_dirty(kernel, mk_pte(swp_pfn(mm, entry) if pfn is None else pfn, prot))
    mm.page_tables.set_entry(va, level, new | swp_software(entry) | (PSE if level > 1 else 0))


def migration_entry(mm: AddressSpace, entry: int, pfn: int, *, exclusive: bool) -> int:
    """Return the migration entry that stands for a present entry of the page ``pfn``."""
    kernel = mm.kernel
    bits = kernel.swp_pfn_bits[mm.levels - 4]
    if entry & RW:
        swp_type = kernel.swp_migration_write
    elif exclusive and kernel.has_anon_exclusive:
        swp_type = kernel.swp_migration_read_exclusive
    else:
        swp_type = kernel.swp_migration_read
    offset = pfn
    if bits < 50:
        offset |= (1 << bits if entry & A else 0) | (1 << (bits + 1) if entry & kernel.dirty_bits else 0)
    return encode_swap(swp_type, offset) | swp_flags(entry)
