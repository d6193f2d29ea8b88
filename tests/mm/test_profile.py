"""Numbers of swap types by release and config: what was read in, or measured on, running kernels."""

import pytest

from gpuhmm.mm.entry import encode_swap
from gpuhmm.mm.profile import NO_TYPE, PROFILES, V6_1, V6_12, V6_17, V6_18, V7_0, V7_3, kernel_profile

#: include/linux/swap.h of each: MAX_SWAPFILES, hwpoison, migration (read, read exclusive, write), private
#: (write, read), exclusive (write, read), marker, swapin error; with everything configured.
FULL = {
    "v5.18": (25, 25, 26, NO_TYPE, 27, 28, 29, 30, 31, NO_TYPE, NO_TYPE),
    "v6.1": (22, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31),
    "v6.12": (23, 23, 24, 25, 26, 27, 28, 29, 30, 31, NO_TYPE),
    "v6.17": (24, 24, 25, 26, 27, 28, 29, 30, 30, 31, NO_TYPE),
}
FULL |= dict.fromkeys(("v6.18", "v7.0", "v7.3"), FULL["v6.17"])

#: Kernels that were run, or whose config was read: what they lack, and MAX_SWAPFILES, hwpoison, migration,
#: private, exclusive, marker.
RUNNING = {
    "Debian 12 6.1.192": (V6_1, "device_private", (26, 26, 27, 28, 29, NO_TYPE, NO_TYPE, NO_TYPE, 30)),
    "Debian 13 6.12.118": (V6_12, "device_private", (27, 27, 28, 29, 30, NO_TYPE, NO_TYPE, NO_TYPE, 31)),
    "6.12 of a small config": (V6_12, "memory_failure", (24, NO_TYPE, 24, 25, 26, 27, 28, 29, 31)),
    "Ubuntu 6.17.0-41": (V6_17, "", (24, 24, 25, 26, 27, 28, 29, 30, 31)),
    "Debian backports 7.3.4": (V7_3, "", (24, 24, 25, 26, 27, 28, 29, 30, 31)),
    "6.18.44": (
        V6_18,
        "device_private memory_failure",
        (28, NO_TYPE, 28, 29, 30, NO_TYPE, NO_TYPE, NO_TYPE, 31),
    ),
}


def numbers(profile):
    return (
        profile.max_swapfiles,
        profile.swp_hwpoison,
        profile.swp_migration_read,
        profile.swp_migration_read_exclusive,
        profile.swp_migration_write,
        profile.swp_device_write,
        profile.swp_device_read,
        profile.swp_device_exclusive_write,
        profile.swp_device_exclusive_read,
        profile.swp_pte_marker,
        profile.swp_swapin_error,
    )


def test_numbers_of_the_full_config():
    assert {name: numbers(profile) for name, profile in PROFILES.items()} == FULL


@pytest.mark.parametrize("kernel", RUNNING)
def test_numbers_of_running_kernels(kernel):
    release, lacks, expected = RUNNING[kernel]
    profile = release.with_config(**dict.fromkeys(lacks.split(), False))
    assert (*numbers(profile)[:8], profile.swp_pte_marker) == expected
    assert profile.name == release.name
    assert (profile == release) is (not lacks)


@pytest.mark.parametrize("lacks", ["device_private", "migration", "memory_failure"])
def test_the_marker_is_the_last_type_whatever_the_config_lacks(lacks):
    for release in (V6_12, V6_17, V7_0):
        assert release.with_config(**{lacks: False}).swp_pte_marker == 31


def test_a_config_is_given_whole():
    small = V6_12.with_config(device_private=False, memory_failure=False)
    assert small.title == "v6.12 without DEVICE_PRIVATE and MEMORY_FAILURE"
    assert small.lacks == ["DEVICE_PRIVATE", "MEMORY_FAILURE"]
    assert small.with_config() == V6_12
    assert V6_12.title == "v6.12"


def test_without_migration_types_pages_are_still_marked_exclusive():
    assert V6_12.with_config(migration=False).has_anon_exclusive
    assert not PROFILES["v5.18"].has_anon_exclusive


def test_the_devmap_bit_by_release():
    bits = {name: profile.page_devmap for name, profile in PROFILES.items()}
    assert bits.pop("v5.18") == bits.pop("v6.1") == 1 << 58
    assert bits.pop("v6.12") == 1 << 57
    assert set(bits.values()) == {0}


def test_d_makes_writable_with_the_cpu_and_from_v6_6_on_only():
    assert V6_12.shadow_stack_bit(True) == 0x40
    assert V6_12.shadow_stack_bit(False) == V6_1.shadow_stack_bit(True) == 0


def test_what_cannot_be_says_what_was_expected():
    with pytest.raises(ValueError, match=r"one of v5\.18, v6\.1, v6\.12, .*'v4\.4'"):
        kernel_profile("v4.4")
    with pytest.raises(ValueError, match=r"device_private must be True or False \(got 1\)"):
        V6_12.with_config(device_private=1)
    with pytest.raises(ValueError, match=r"got type 255.* its config lacks"):
        encode_swap(V6_12.with_config(device_private=False).swp_device_write, 1)
