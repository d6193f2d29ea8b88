"""Drivers by name.  Adding one is one file with a settings class and a :class:`Driver`, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpuhmm.coalesce.drivers.amdkfd import AmdkfdDriver, AmdkfdSettings
from gpuhmm.coalesce.drivers.driver import Driver
from gpuhmm.coalesce.drivers.free import FreeDriver, FreeSettings
from gpuhmm.coalesce.drivers.nouveau import NouveauDriver, NouveauSettings
from gpuhmm.coalesce.drivers.settings import with_settings
from gpuhmm.coalesce.drivers.uvm.driver import UvmDriver
from gpuhmm.coalesce.drivers.uvm.settings import UvmSettings
from gpuhmm.coalesce.drivers.xe import XeDriver, XeSettings

#: Each driver's class and settings, by name.
DRIVERS: dict[str, tuple[Callable[[Any], Driver], Any]] = {
    "uvm": (UvmDriver, UvmSettings()),
    "nouveau": (NouveauDriver, NouveauSettings()),
    "amdkfd": (AmdkfdDriver, AmdkfdSettings()),
    "xe": (XeDriver, XeSettings()),
    "free": (FreeDriver, FreeSettings()),
}


def driver_named(name: str, settings: Mapping[str, object] | None = None) -> Driver:
    """Return a new driver with some of its settings changed.

    ValueError for a name that is none, and for settings that it does not have or that cannot be.
    """
    if name not in DRIVERS:
        raise ValueError(f"a driver must be one of {', '.join(DRIVERS)} (got {name!r})")
    make, default = DRIVERS[name]
    return make(with_settings(default, settings or {}))


__all__ = ["DRIVERS", "Driver", "driver_named"]
