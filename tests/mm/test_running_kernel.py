"""The profile of a kernel by its release and config; the numbers of swap types are those of test_profile."""

import pytest

from gpuhmm.mm.profile import PROFILES, V6_1, V6_12, V6_18, kernel_profile
from gpuhmm.mm.running_kernel import CONFIG_OPTIONS, choose_kernel, read_config

FULL = (True, True, True)

#: Kernels that were run, or whose config was read: their options in order, and what they are.
RUNNING = {
    "6.1.0-44-amd64": ((False, True, True), "v6.1:no-device-private"),
    "6.12.118+deb13-amd64": ((False, True, True), "v6.12:no-device-private"),
    "6.12.118": ((True, True, False), "v6.12:no-memory-failure"),
    "6.17.0-41-generic": (FULL, "v6.17"),
    "7.3.4+deb13-amd64": (FULL, "v7.3"),
    "6.18.44-fc-v657": ((False, True, False), "v6.18:no-device-private,no-memory-failure"),
}


def config(set_):
    return dict(zip(CONFIG_OPTIONS, set_, strict=True))


@pytest.mark.parametrize("release", RUNNING)
def test_running_kernels(release):
    set_, name = RUNNING[release]
    choice = choose_kernel(release, config(set_), config_from="a test")
    assert choice.profile == kernel_profile(name)
    assert choice.why == f"Linux {release}, config from a test"


@pytest.mark.parametrize(
    ("release", "profile", "why"),
    [
        ("5.15.0-91-generic", "v5.18", "Linux 5.15.0-91-generic, older than v5.18, the oldest"),
        ("5.18.0", "v5.18", "Linux 5.18.0; "),
        ("6.0.19", "v5.18", "Linux 6.0.19, between v5.18 and v6.1; "),
        ("6.1.192", "v6.1", "Linux 6.1.192; "),
        ("6.11.0-29-generic", "v6.1", "between v6.1 and v6.12; "),
        ("6.12.0-55.el10.x86_64", "v6.12", "Linux 6.12.0-55.el10.x86_64, of RHEL 10, whose backports"),
        ("6.12.0-55.el10_1.x86_64", "v6.12", "RHEL 10"),
        ("6.16.1", "v6.12", "between v6.12 and v6.17; "),
        ("6.17.13", "v6.17", "Linux 6.17.13; "),
        ("6.18.44", "v6.18", "Linux 6.18.44; "),
        ("6.19.2", "v6.18", "between v6.18 and v7.0; "),
        ("7.2.12", "v7.0", "between v7.0 and v7.3; "),
        ("7.10.1", "v7.3", "newer than v7.3, the newest"),
        ("10.0", "v7.3", "newer than v7.3, the newest"),
        (None, "v6.1", "nothing says which kernel it is, v6.1 is assumed; "),
    ],
)
def test_the_newest_profile_that_is_not_newer(release, profile, why):
    choice = choose_kernel(release)
    assert choice.profile is PROFILES[profile]
    assert why in choice.why
    assert choice.why.endswith(
        "; DEVICE_PRIVATE, MIGRATION and MEMORY_FAILURE are assumed, as its config is not known"
    )


def test_why_a_kernel_was_chosen_names_both_sources():
    choice = choose_kernel("6.18.1", config(FULL), release_from="its banner", config_from="/proc/config.gz")
    assert choice.why == "Linux 6.18.1 (its banner), config from /proc/config.gz"
    assert choice.profile == V6_18


@pytest.mark.parametrize("release", ["", "linux", "6", "v6.12", "6.x"])
def test_what_is_no_release(release):
    with pytest.raises(ValueError, match="must begin with two numbers"):
        choose_kernel(release)


def test_options_are_read_from_a_config():
    text = "CONFIG_MIGRATION=y\n# CONFIG_DEVICE_PRIVATE is not set\nCONFIG_MEMORY_FAILURE=m\nCONFIG_X=y\n"
    assert read_config(text) == config((False, True, False))
    assert read_config("#CONFIG_MIGRATION=y\nCONFIG_DEVICE_PRIVATE=y\n") == config((True, False, False))
    assert read_config("nothing of the kind") is None


def test_names_of_kernels_say_what_they_lack():
    assert kernel_profile("v6.12") is V6_12
    assert kernel_profile("v6.1:no-device-private") == V6_1.with_config(device_private=False)
    made = kernel_profile("v6.18:no-memory-failure,no-device-private,no-migration")
    assert made == V6_18.with_config(device_private=False, migration=False, memory_failure=False)
    assert made.title == "v6.18 without DEVICE_PRIVATE, MIGRATION and MEMORY_FAILURE"
    assert kernel_profile("v6.12:no-migration").title == "v6.12 without MIGRATION"


@pytest.mark.parametrize(
    "name", ["v6.2", "v6.12:", "v6.12:no-swap", "v6.12:no-migration,", ":no-migration", None]
)
def test_unknown_kernels_are_refused_with_the_names(name):
    with pytest.raises(ValueError, match=r"one of v5\.18, v6\.1, v6\.12, .*no-device-private"):
        kernel_profile(name)
