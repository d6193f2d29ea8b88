"""What differs between kernels, as data: one record a kernel.

Sources, named in the numbers below by their release:

* v5.18: mm/hmm.c of revision 7419995a with the mm/pagewalk.c of its time.
* v6.1: Debian's linux-source-6.1.
* v6.12: Debian's linux-source-6.12 6.12.118-1.
* v6.17: Ubuntu's linux-source-6.17.0 6.17.0-41.41 (6.17.13).
* v6.18: v6.17 with hmm_vma_handle_absent_pmd() (commit 10b9feee2d0d); no package has it.
* v7.0: Ubuntu's linux-source-7.0.0 7.0.0-44.44 (7.0.14); Debian's 7.2.12 walks as it does.
* v7.3: Debian's linux-source-7.3 7.3.4-1~bpo13+1.

Where a release between two of these brought a change, the profile says what the opened source does.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gpuhmm.mm import x86

#: No swap type has this number: a feature that a kernel or its config lacks.
NO_TYPE = 255

#: MAX_SWAPFILES_SHIFT is 5: numbers of swap types (include/linux/swap.h).
_SWAP_TYPES = 32

#: The options that swap types depend on, and their fields.
_OPTIONS = {
    "DEVICE_PRIVATE": "device_private",
    "MIGRATION": "migration",
    "MEMORY_FAILURE": "memory_failure",
}
#: How the name of a kernel says that it lacks one: ``v6.12:no-device-private,no-memory-failure``.
_LACKING = {f"no-{name.replace('_', '-')}": name for name in _OPTIONS.values()}


@dataclass(frozen=True)
class KernelProfile:
    """The switches and numbers by which one kernel's ``hmm_range_fault()`` differs from another's.

    The numbers of swap types follow from the release and its config: types that a config lacks take no
    numbers, so that those before them move up.  They have 5 bits, ``NO_TYPE`` where there is no such
    type; a type below ``max_swapfiles`` is a swap file.  The profiles of :data:`PROFILES` have all of
    them; :meth:`with_config` gives another config's.  Source: include/linux/swap.h, swapops.h.
    """

    name: str
    #: SWP_DEVICE_NUM: read and write private, and one or two for device-exclusive pages (one from v6.15 on).
    nr_device_types: int
    #: SWP_MIGRATION_NUM: with or without SWP_MIGRATION_READ_EXCLUSIVE (v5.19).
    nr_migration_types: int
    #: SWP_PTE_MARKER_NUM (v5.19), SWP_SWAPIN_ERROR_NUM (v5.19 to v6.2, a marker bit since).
    nr_pte_marker_types: int
    nr_swapin_error_types: int
    #: Bits of a swap offset that hold a PFN, with 4 and with 5 levels; the rest is flags.
    swp_pfn_bits: tuple[int, int]
    #: PTE_MARKER_MASK: bits of a marker's offset.  1 uffd-wp, 2 poison, 4 guard region.
    pte_marker_mask: int
    #: A marker with any of these bits counts as an empty PTE; 0: every marker does.
    pte_marker_empty: int
    #: Swap type 0 with offset 0 is of no type at all (softleaf_is_none): a request for it is -EFAULT.
    typeless_swap_entry: bool
    #: _PAGE_DEVMAP, 0 where the kernel has none: then a huge PUD is a leaf as it stands.
    page_devmap: int
    #: An entry with D and without RW may be writable: with a CPU that has user shadow stacks (v6.6).
    user_shadow_stacks: bool
    #: Flags that pmd_bad leaves out.
    pmd_bad_ignores: int
    #: A request on a device-private page of somebody else faults it back (else -EFAULT).
    foreign_device_private_faults: bool
    #: A gap without a VMA is one hole (else one for each upper entry that covers it).
    no_vma_single_hole: bool
    #: A huge PUD without P is a hole, whatever else it is; else only one that is devmap.
    absent_pud_is_hole: bool
    #: PMDs may be device-private (hmm_vma_handle_absent_pmd).
    device_private_pmd: bool
    #: HMM_PFN_ORDER_SHIFT of include/linux/hmm.h; PFNs lie below the order.
    hmm_pfn_order_shift: int
    #: HMM_PFN_INOUT_FLAGS: bits of a word that are kept from the input.
    hmm_pfn_sticky: int
    #: _PAGE_SAVED_DIRTY, 0 before v6.6: a dirty entry without RW has it in place of D, so that none looks
    #: like one of a shadow stack (pgtable.h:pte_mksaveddirty).
    page_saved_dirty: int
    #: A copy and a reuse are told (VM_FAULT_WRITE, until v6.1).
    vm_fault_write: bool
    #: Where rights come back it is found out anew whether an entry may be writable, a huge one too; a NUMA
    #: hint does not remember it (v6.2: mm/mprotect.c:can_change_pte_writable, pte_savedwrite gone).
    manual_write_upgrade: bool
    #: The PTEs of a huge page that is split are dirty if it was (mm/huge_memory.c, from v6.3 on).
    split_keeps_dirty: bool
    #: A page that only one process has comes back from swap writable even if it is only read.
    swap_in_writable: bool
    #: uffd-wp markers stand for untouched anonymous memory, too (v6.4, UFFD_FEATURE_WP_UNPOPULATED).
    anon_uffd_wp_markers: bool
    #: A write to the huge zero page brings a huge page (mm/huge_memory.c:do_huge_zero_wp_pmd), else a split.
    huge_zero_page_replaced: bool
    #: The huge zero page is mapped as special (mm/huge_memory.c:set_huge_zero_folio).
    huge_zero_page_special: bool
    #: A fault on a device-private PMD brings its 2 MiB back (mm/huge_memory.c:do_huge_pmd_device_private).
    device_private_pmd_faults: bool
    #: Faults are made after the walk, and their errno tells what went wrong.
    faults_after_walk: bool
    #: CONFIG_DEVICE_PRIVATE, CONFIG_MIGRATION, CONFIG_MEMORY_FAILURE.
    device_private: bool = True
    migration: bool = True
    memory_failure: bool = True
    max_swapfiles: int = field(init=False)
    swp_hwpoison: int = field(init=False)
    swp_migration_read: int = field(init=False)
    swp_migration_read_exclusive: int = field(init=False)
    swp_migration_write: int = field(init=False)
    swp_device_write: int = field(init=False)
    swp_device_read: int = field(init=False)
    #: The same number twice where there is one type.
    swp_device_exclusive_write: int = field(init=False)
    swp_device_exclusive_read: int = field(init=False)
    swp_pte_marker: int = field(init=False)
    swp_swapin_error: int = field(init=False)

    def __post_init__(self) -> None:
        """Number the swap types: reserved ones from the top down, in the order of include/linux/swap.h."""
        for name in _OPTIONS.values():
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False (got {getattr(self, name)!r})")
        migration = {
            2: ("swp_migration_read", "swp_migration_write"),
            3: ("swp_migration_read", "swp_migration_read_exclusive", "swp_migration_write"),
        }
        device = {
            3: ("swp_device_write", "swp_device_read", "swp_device_exclusive_write"),
            4: (
                "swp_device_write",
                "swp_device_read",
                "swp_device_exclusive_write",
                "swp_device_exclusive_read",
            ),
        }
        if self.nr_migration_types not in migration or self.nr_device_types not in device:
            raise ValueError(
                "a kernel must have 2 or 3 migration types and 3 or 4 device types "
                f"(got {self.nr_migration_types} and {self.nr_device_types})"
            )
        reserved = [
            *["swp_hwpoison"] * self.memory_failure,
            *migration[self.nr_migration_types] * self.migration,
            *device[self.nr_device_types] * self.device_private,
            *["swp_pte_marker"] * self.nr_pte_marker_types,
            *["swp_swapin_error"] * self.nr_swapin_error_types,
        ]
        first = _SWAP_TYPES - len(reserved)
        numbers = dict.fromkeys(_NUMBERED, NO_TYPE)
        numbers |= {name: first + place for place, name in enumerate(reserved)}
        if self.nr_device_types == 3:
            numbers["swp_device_exclusive_read"] = numbers["swp_device_exclusive_write"]
        for name, number in numbers.items():
            object.__setattr__(self, name, number)
        object.__setattr__(self, "max_swapfiles", first)

    def with_config(
        self,
        *,
        device_private: bool = True,
        migration: bool = True,
        memory_failure: bool = True,
    ) -> KernelProfile:
        """Return the same release built with these of its options on: CONFIG_DEVICE_PRIVATE and so on."""
        return replace(
            self, device_private=device_private, migration=migration, memory_failure=memory_failure
        )

    @property
    def lacks(self) -> list[str]:
        """The options that the config does not have, in Kconfig's names without CONFIG_."""
        return [option for option, name in _OPTIONS.items() if not getattr(self, name)]

    @property
    def title(self) -> str:
        """The release, and what its config lacks."""
        *rest, last = self.lacks or [""]
        options = f"{', '.join(rest)} and {last}" if rest else last
        return self.name + (f" without {options}" if options else "")

    @property
    def has_anon_exclusive(self) -> bool:
        """The kernel marks anonymous pages that one process owns (PageAnonExclusive, v5.19 and later)."""
        return self.nr_migration_types == 3

    @property
    def restoring_exclusive_clears(self) -> bool:
        """Taking a page back from a device tells CLEAR (v6.15, with the one type), else EXCLUSIVE.

        Source: mm/memory.c:remove_device_exclusive_entry.
        """
        return self.nr_device_types == 3

    @property
    def dirty_bits(self) -> int:
        """_PAGE_DIRTY_BITS: any of them makes an entry dirty (pte_dirty)."""
        return int(x86.PAGE_DIRTY) | self.page_saved_dirty

    @property
    def huge_bits(self) -> int:
        """Bits of which a PMD or PUD that is a leaf has one: PSE, and DEVMAP where there is such a bit."""
        return int(x86.PAGE_PSE) | self.page_devmap

    def shadow_stack_bit(self, shstk: bool) -> int:
        """Return the bit that makes an entry writable without RW: D on a CPU with user shadow stacks."""
        return int(x86.PAGE_DIRTY) if shstk and self.user_shadow_stacks else 0

    @property
    def hmm_pfn_flags(self) -> int:
        """HMM_PFN_FLAGS: every bit of a word that is not of its PFN."""
        return (1 << 64) - (1 << self.hmm_pfn_order_shift)


_NUMBERED = (
    "swp_hwpoison",
    "swp_migration_read",
    "swp_migration_read_exclusive",
    "swp_migration_write",
    "swp_device_write",
    "swp_device_read",
    "swp_device_exclusive_write",
    "swp_device_exclusive_read",
    "swp_pte_marker",
    "swp_swapin_error",
)

V5_18 = KernelProfile(
    name="v5.18",
    nr_device_types=4,
    nr_migration_types=2,
    nr_pte_marker_types=0,
    nr_swapin_error_types=0,
    swp_pfn_bits=(50, 50),  # swp_offset: all of it
    pte_marker_mask=0,
    pte_marker_empty=0,
    typeless_swap_entry=False,
    page_devmap=1 << 58,  # _PAGE_BIT_SOFTW4, arch/x86/include/asm/pgtable_types.h
    user_shadow_stacks=False,
    pmd_bad_ignores=0x4,  # USER, arch/x86/include/asm/pgtable.h:pmd_bad
    foreign_device_private_faults=False,
    no_vma_single_hole=False,
    absent_pud_is_hole=False,
    device_private_pmd=False,
    hmm_pfn_order_shift=56,  # include/linux/hmm.h: BITS_PER_LONG - 8
    hmm_pfn_sticky=0,
    page_saved_dirty=0,
    vm_fault_write=True,
    manual_write_upgrade=False,
    split_keeps_dirty=False,
    swap_in_writable=False,
    anon_uffd_wp_markers=False,
    huge_zero_page_replaced=False,
    huge_zero_page_special=False,
    device_private_pmd_faults=False,
    faults_after_walk=False,
)

V6_1 = replace(
    V5_18,
    name="v6.1",
    nr_migration_types=3,
    nr_pte_marker_types=1,
    nr_swapin_error_types=1,
    swp_pfn_bits=(34, 40),  # SWP_PFN_BITS: MAX_PHYSMEM_BITS - PAGE_SHIFT
    pte_marker_mask=0x1,
    pmd_bad_ignores=0x24,  # USER and ACCESSED
    foreign_device_private_faults=True,  # commit 8a295dbbaf72 (v5.19)
    no_vma_single_hole=True,  # commit 8782fb61cc848 (v6.0)
)

V6_12 = replace(
    V6_1,
    name="v6.12",
    nr_swapin_error_types=0,
    pte_marker_mask=0x3,
    page_devmap=1 << 57,  # _PAGE_BIT_SOFTW4 moved; 58 is _PAGE_BIT_SAVED_DIRTY
    user_shadow_stacks=True,  # pgtable.h:pte_shstk, pmd_shstk
    absent_pud_is_hole=True,  # mm/hmm.c:hmm_vma_walk_pud asks pud_present first
    page_saved_dirty=1 << 58,  # arch/x86/include/asm/pgtable_types.h:_PAGE_BIT_SAVED_DIRTY
    vm_fault_write=False,  # include/linux/mm_types.h:vm_fault_reason
    manual_write_upgrade=True,  # include/linux/mm.h:vma_wants_manual_pte_write_upgrade
    split_keeps_dirty=True,  # mm/huge_memory.c:__split_huge_pmd_locked
    swap_in_writable=True,  # mm/memory.c:do_swap_page
    anon_uffd_wp_markers=True,  # mm/memory.c:pte_marker_handle_uffd_wp
)

V6_17 = replace(
    V6_12,
    name="v6.17",
    nr_device_types=3,
    pte_marker_mask=0x7,
    page_devmap=0,
    huge_zero_page_replaced=True,  # mm/huge_memory.c:do_huge_zero_wp_pmd
    hmm_pfn_order_shift=53,  # include/linux/hmm.h: BITS_PER_LONG - 11
    hmm_pfn_sticky=0x7 << 58,  # DMA_MAPPED, P2PDMA, P2PDMA_BUS
)

V6_18 = replace(V6_17, name="v6.18", device_private_pmd=True, huge_zero_page_special=True)

V7_0 = replace(
    V6_18,
    name="v7.0",
    pte_marker_empty=0x1,  # mm/hmm.c:hmm_vma_handle_pte asks softleaf_is_none or pte_marker_uffd_wp
    device_private_pmd_faults=True,  # mm/huge_memory.c:do_huge_pmd_device_private
    typeless_swap_entry=True,  # include/linux/leafops.h:softleaf_type
)

V7_3 = replace(
    V7_0,
    name="v7.3",
    faults_after_walk=True,  # mm/hmm.c: "move page fault handling out of walk callbacks"
)

PROFILES = {profile.name: profile for profile in (V5_18, V6_1, V6_12, V6_17, V6_18, V7_0, V7_3)}


def kernel_profile(kernel: str | KernelProfile) -> KernelProfile:
    """Return the profile of that name, or the profile itself.

    A name may say what the kernel's config lacks: ``v6.12:no-device-private,no-memory-failure``.  ValueError
    for any other name.
    """
    if isinstance(kernel, KernelProfile):
        return kernel
    name, colon, options = str(kernel).partition(":")
    lacking = options.split(",") if colon else []
    if name not in PROFILES or not all(option in _LACKING for option in lacking):
        raise ValueError(
            f"kernel must be a KernelProfile or one of {', '.join(PROFILES)}, after which a colon and "
            f"{', '.join(_LACKING)} may follow (got {kernel!r})"
        )
    found = PROFILES[name]
    return found.with_config(**{_LACKING[option]: False for option in lacking}) if lacking else found
