"""What each driver decides about a device's faults: a file or a folder a driver, and the registry of them."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Return ``DRIVERS``, ``Driver`` or ``driver_named``; only who asks for them imports every driver."""
    if name not in ("DRIVERS", "Driver", "driver_named"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gpuhmm.coalesce.drivers import registry

    return getattr(registry, name)
