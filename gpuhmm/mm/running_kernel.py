"""Which profile a kernel that runs, or ran, is walked as: chosen by its release and its config.

Source of the dependence on the config: include/linux/swap.h, swapops.h (v5.18 to v7.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gpuhmm.mm.profile import PROFILES, KernelProfile, kernel_profile

#: The options that swap types depend on.
CONFIG_OPTIONS = ("CONFIG_DEVICE_PRIVATE", "CONFIG_MIGRATION", "CONFIG_MEMORY_FAILURE")

#: What is taken where nothing says which kernel it was.
ASSUMED = "v6.1"

_RELEASE = re.compile(r"(\d+)\.(\d+)(?!\d)")
_SET = re.compile(r"^(CONFIG_\w+)=y$", re.MULTILINE)


@dataclass(frozen=True)
class KernelChoice:
    """A profile, and why it is this one, in words that follow "walked as ... does: "."""

    profile: KernelProfile
    why: str


def choose_kernel(
    release: str | None,
    config: Mapping[str, bool] | None = None,
    *,
    release_from: str = "",
    config_from: str = "",
) -> KernelChoice:
    """Return the newest profile that is not newer than ``release``, as ``config`` makes it.

    ``release`` is as ``uname -r`` says it, ``config`` as :func:`read_config` returns it, ``release_from``
    and ``config_from`` say in words where they are from.  Where ``release`` is None, ASSUMED is taken; where
    ``config`` is None, all options count as set.  ValueError for a release that does not begin with two
    numbers.
    """
    profile, why = _by_release(release)
    why += f" ({release_from})" * bool(release_from)
    if config is None:
        options = [name.removeprefix("CONFIG_") for name in CONFIG_OPTIONS]
        assumed = f"{', '.join(options[:-1])} and {options[-1]} are assumed, as its config is not known"
        return KernelChoice(profile, f"{why}; {assumed}")
    device_private, migration, memory_failure = (bool(config[name]) for name in CONFIG_OPTIONS)
    built = profile.with_config(
        device_private=device_private, migration=migration, memory_failure=memory_failure
    )
    return KernelChoice(built, f"{why}, config from {config_from}")


def given_kernel(kernel: str | KernelProfile) -> KernelChoice:
    """Return the profile that somebody asked for.  ValueError for an unknown name."""
    return KernelChoice(kernel_profile(kernel), "as asked for")


def read_config(text: str) -> dict[str, bool] | None:
    """Return which of the CONFIG_OPTIONS a kernel's ``.config`` sets; None for a text that sets nothing."""
    found = set(_SET.findall(text))
    return {name: name in found for name in CONFIG_OPTIONS} if found else None


def _by_release(release: str | None) -> tuple[KernelProfile, str]:
    """Return the profile with all options, and what is to be said about it."""
    if release is None:
        return PROFILES[ASSUMED], f"nothing says which kernel it is, {ASSUMED} is assumed"
    number = _number(release)
    known = {_number(name[1:]): profile for name, profile in PROFILES.items()}
    older = [at for at in known if at <= number]
    found = max(older, default=min(known))
    why = f"Linux {release}"
    if number != found:
        newer = [at for at in known if at > number]
        if not older:
            why += f", older than {known[found].name}, the oldest kernel that is known"
        elif not newer:
            why += f", newer than {known[found].name}, the newest kernel that is known"
        else:
            why += f", between {known[found].name} and {known[min(newer)].name}"
    if re.search(r"\bel10", release):
        why += ", of RHEL 10, whose backports may have changed words and types"
    return known[found], why


def _number(release: str) -> tuple[int, int]:
    match = _RELEASE.match(release)
    if match is None:
        raise ValueError(f"a kernel release must begin with two numbers, as 6.12.1 does (got {release!r})")
    return int(match[1]), int(match[2])
