"""The kernel that runs: its release, its config where it can be read, and else what a page of our own tells.

Source: kernel/configs.c (/proc/config.gz); mm/madvise.c:madvise_guard_install (v6.13).
"""

from __future__ import annotations

import errno
import gzip
import mmap
import platform
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpuhmm.mm.running_kernel import KernelChoice, choose_kernel, read_config
from gpuhmm.process.pagemap import PM_PFN, PM_SWAP_OFFSET_SHIFT, PM_SWAP_TYPE, own_word

_CONFIG_GZ = Path("/proc/config.gz")
_BOOT = Path("/boot")
_MADV_GUARD_INSTALL = 102


def running_kernel() -> KernelChoice:
    """Return the profile of the kernel that runs, by ``uname -r`` and its config.

    Where no config can be read, a guard page of our own is looked at, and what it shows is said.
    """
    release = platform.release()
    for path in (_CONFIG_GZ, _BOOT / f"config-{release}"):
        config = _config_of(path)
        if config is not None:
            return choose_kernel(release, config, config_from=str(path))
    choice = choose_kernel(release)
    return replace(choice, why=f"{choice.why}; {_seen_of_markers(choice, guard_marker())}")


def guard_marker() -> tuple[int, int] | None:
    """Return swap type and offset of a guard page, as the running kernel shows a page of our own.

    None where there are no guard pages (before Linux 6.13) or pagemap hides what they are.
    """
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_MADV_GUARD_INSTALL)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EPERM, errno.ENOSYS):
            return None
        raise
    frame = own_word(np.frombuffer(page, dtype=np.uint8).ctypes.data) & int(PM_PFN)
    return (frame & int(PM_SWAP_TYPE), frame >> int(PM_SWAP_OFFSET_SHIFT)) if frame else None


def _seen_of_markers(choice: KernelChoice, marker: tuple[int, int] | None) -> str:
    if marker is None:
        return "no guard page of our own shows the type of markers"
    swp_type, offset = marker
    expected = choice.profile.swp_pte_marker
    seen = f"a guard page of our own is a marker of type {swp_type}, offset {offset}"
    return seen + ("" if swp_type == expected else f", where {choice.profile.name} has {expected}")


def _config_of(path: Path) -> dict[str, bool] | None:
    """Return the options of a config file; None where there is none, or none that can be read."""
    try:
        data = path.read_bytes()
        text = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error):
        return None
    return read_config(text.decode(errors="replace"))
