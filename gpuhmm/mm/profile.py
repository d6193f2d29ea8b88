"""What differs between kernels, as data: one record a kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: No swap type has this number: a feature that a profile lacks.
NO_TYPE = 255


@dataclass(frozen=True)
class KernelProfile:
    """The switches and numbers by which one kernel's ``hmm_range_fault()`` differs from another's.

    Swap types are numbers of 5 bits (``NO_TYPE`` where the kernel lacks one).  A type below
    ``max_swapfiles`` is a swap file.  Source: include/linux/swap.h, swapops.h and mm/pagewalk.c of
    the kernel that ``name`` says.
    """

    name: str
    max_swapfiles: int
    swp_hwpoison: int
    swp_migration_read: int
    swp_migration_read_exclusive: int
    swp_migration_write: int
    swp_device_write: int
    swp_device_read: int
    swp_device_exclusive_write: int
    swp_device_exclusive_read: int
    swp_pte_marker: int
    swp_swapin_error: int
    #: Bits of a swap offset that hold a PFN, with 4 and with 5 levels; the rest is flags.
    swp_pfn_bits: tuple[int, int]
    #: A request on a device-private page of somebody else faults it back (else -EFAULT).
    foreign_device_private_faults: bool
    #: A gap without a VMA is one hole (else one for each upper entry that covers it).
    no_vma_single_hole: bool
    #: Flags that pmd_bad leaves out.
    pmd_bad_ignores: int

    @property
    def has_anon_exclusive(self) -> bool:
        """The kernel marks anonymous pages that one process owns (PageAnonExclusive, v5.19 and later)."""
        return self.swp_migration_read_exclusive != NO_TYPE

    def __post_init__(self) -> None:
        for field, value in vars(self).items():
            if (
                field.startswith("swp_")
                and isinstance(value, int)
                and not (0 <= value < 32 or value == NO_TYPE)
            ):
                raise ValueError(f"{field} must be a swap type below 32 or NO_TYPE (got {value})")


V5_18 = KernelProfile(
    name="v5.18",
    max_swapfiles=25,
    swp_hwpoison=25,
    swp_migration_read=26,
    swp_migration_read_exclusive=NO_TYPE,
    swp_migration_write=27,
    swp_device_write=28,
    swp_device_read=29,
    swp_device_exclusive_write=30,
    swp_device_exclusive_read=31,
    swp_pte_marker=NO_TYPE,
    swp_swapin_error=NO_TYPE,
    swp_pfn_bits=(50, 50),
    foreign_device_private_faults=False,
    no_vma_single_hole=False,
    pmd_bad_ignores=0x4,
)

V6_1 = replace(
    V5_18,
    name="v6.1",
    max_swapfiles=22,
    swp_hwpoison=22,
    swp_migration_read=23,
    swp_migration_read_exclusive=24,
    swp_migration_write=25,
    swp_device_write=26,
    swp_device_read=27,
    swp_device_exclusive_write=28,
    swp_device_exclusive_read=29,
    swp_pte_marker=30,
    swp_swapin_error=31,
    swp_pfn_bits=(34, 40),
    foreign_device_private_faults=True,
    no_vma_single_hole=True,
    pmd_bad_ignores=0x24,
)

PROFILES = {profile.name: profile for profile in (V5_18, V6_1)}


def kernel_profile(kernel: str | KernelProfile) -> KernelProfile:
    """Return the profile of that name, or the profile itself.  ValueError for an unknown name."""
    if isinstance(kernel, KernelProfile):
        return kernel
    if kernel not in PROFILES:
        raise ValueError(f"kernel must be a KernelProfile or one of {', '.join(PROFILES)} (got {kernel!r})")
    return PROFILES[kernel]
