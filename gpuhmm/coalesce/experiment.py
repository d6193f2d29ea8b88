"""An experiment: what faults, over which memory, under which driver, at what cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gpuhmm.coalesce.areas import DeviceAreas
from gpuhmm.coalesce.costs import Costs, costs_named
from gpuhmm.coalesce.cpu_side import CpuActivity
from gpuhmm.coalesce.device.config import DeviceConfig, device_config
from gpuhmm.coalesce.device.protocol import FaultingDevice
from gpuhmm.coalesce.drivers.registry import DRIVERS, Driver, driver_named
from gpuhmm.coalesce.layouts import layout_named
from gpuhmm.coalesce.run import CoalesceRun, coalesce
from gpuhmm.coalesce.sources import check_device_settings, device_of, source_identity
from gpuhmm.coalesce.spaces import spaces_over
from gpuhmm.coalesce.timeline import Timeline
from gpuhmm.hmm.backends import resolve_backend
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.profile import kernel_profile
from gpuhmm.version import __version__

#: Settings as they were given: names and values, values also as words.
Given = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Experiment:
    """A source of faults, the memory that it faults on, and a driver with its settings.

    ``source`` is a file that :func:`gpuhmm.coalesce.readers.read_trace` reads, or a pattern with parameters
    (``sgemm:n=4096,blocks=32``).  ``settings``, ``device_settings`` and ``cost_times`` change single values
    of the driver, of the device and of the costs.  ``cpu`` is what the CPU does meanwhile, as
    ``operation:per_ms`` or ``operation:per_ms:pages``.  ``make_device`` makes the device in another way: a
    function of a module.

    ValueError where something of it is unknown or cannot be, OSError for a trace that cannot be read, when
    it is first needed; :meth:`check` looks at everything but the parameters of a pattern and the faults of
    a trace.
    """

    source: str
    driver: str = "free"
    settings: Given = ()
    device: str = "titan-v"
    device_settings: Given = ()
    layout: str = "written"
    kernel: str = "v6.1"
    costs: str = "sc21-titan-v"
    cost_times: tuple[tuple[str, float], ...] = ()
    cpu: str | None = None
    seed: int = 0
    backend: str = "auto"
    max_batches: int | None = None
    make_device: Callable[[Experiment], FaultingDevice] | None = None

    def with_settings(self, settings: Mapping[str, Any]) -> Experiment:
        """Return this experiment with further settings; ``device.NAME`` is one of the device."""
        ours, device = dict(self.settings), dict(self.device_settings)
        for name, value in settings.items():
            if name.startswith("device."):
                device[name.removeprefix("device.")] = value
            else:
                ours[name] = value
        return replace(self, settings=tuple(ours.items()), device_settings=tuple(device.items()))

    def check(self) -> None:
        """ValueError unless source, driver, settings, device, layout, costs, CPU and back end can be."""
        self.driver_of()
        if self.make_device is None:
            self.device_config()
            check_device_settings(self.source, dict(self.device_settings))
        layout_named(self.layout)
        kernel_profile(self.kernel)
        self.costs_of()
        if self.cpu is not None:
            self._cpu([], DeviceAreas([]))
        if self.seed < 0:
            raise ValueError(f"seed must not be negative (got {self.seed})")
        if self.max_batches is not None and self.max_batches < 1:
            raise ValueError(f"max_batches must be at least 1 (got {self.max_batches})")
        resolve_backend(self.backend)

    def driver_of(self) -> Driver:
        """Return a new driver with these settings."""
        return driver_named(self.driver, dict(self.settings))

    def device_config(self) -> DeviceConfig:
        """Return the device with these settings."""
        return device_config(self.device, dict(self.device_settings))

    def costs_of(self) -> Costs:
        """Return the calibration with these times."""
        costs = costs_named(self.costs)
        return costs.with_times(**dict(self.cost_times)) if self.cost_times else costs

    def _cpu(self, spaces: list[AddressSpace], areas: DeviceAreas) -> CpuActivity | None:
        if self.cpu is None:
            return None
        operation, *numbers = self.cpu.split(":")
        try:
            (per_ms,) = (float(word) for word in numbers[:1])
            (npages,) = (int(word) for word in numbers[1:]) if numbers[1:] else (1,)
        except ValueError:
            raise ValueError(
                f"cpu must be OPERATION:PER_MS or OPERATION:PER_MS:PAGES, as dontneed:5 (got {self.cpu!r})"
            ) from None
        return CpuActivity(spaces, areas, per_ms, operation, npages, self.seed)

    def identity(self) -> dict[str, Any]:
        """Return everything that determines what comes out, in values that JSON has.

        Settings are there with their defaults and converted, a trace by the digest of its bytes, so that two
        ways of writing the same are one; the version of the package is there too.
        """
        driver = self.driver_of()
        made = self.make_device
        return {
            "version": __version__,
            "source": source_identity(self.source) if made is None else self.source,
            "device": asdict(self.device_config()) if made is None else [self.device, *self.device_settings],
            "made_by": None if made is None else f"{made.__module__}.{made.__qualname__}",
            "driver": driver.name,
            "settings": asdict(driver.settings),
            "layout": self.layout,
            "kernel": self.kernel,
            "costs": asdict(self.costs_of()),
            "cpu": self.cpu,
            "seed": self.seed,
            "backend": resolve_backend(self.backend).name,
            "max_batches": self.max_batches,
        }

    def key(self) -> str:
        """Return a name for this experiment that no other one has: a digest of :meth:`identity`."""
        words = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(words.encode()).hexdigest()[:32]

    def run(
        self, *, timeline: Timeline | None = None, progress: Callable[[int], None] | None = None
    ) -> CoalesceRun:
        """Run it; arguments and errors as those of :func:`gpuhmm.coalesce.run.coalesce`.

        Without a ``timeline`` nothing is kept of when things happened.
        """
        self.check()
        device = (
            device_of(self.source, self.device_config(), self.seed)
            if self.make_device is None
            else self.make_device(self)
        )
        spaces = spaces_over(device.areas, self.layout, self.kernel)
        return coalesce(
            device,
            spaces,
            self.driver_of(),
            costs=self.costs_of(),
            backend=self.backend,
            cpu=self._cpu(spaces, device.areas),
            timeline=Timeline(keep=False) if timeline is None else timeline,
            max_batches=self.max_batches,
            progress=progress,
        )


#: The driver that is none; it runs only where it is asked for.
FREE = "free"


def default_drivers() -> list[str]:
    """Return the drivers that run side by side if none is named: all but the free one."""
    return [name for name in DRIVERS if name != FREE] or [FREE]


def settings_of_drivers(drivers: list[str], given: list[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Return the settings of each driver: ``driver.name`` is for one, ``name`` for all that have it.

    ValueError for a driver that does not run, and for a setting that none of them has.
    """
    found: dict[str, dict[str, str]] = {driver: {} for driver in drivers}
    for name, value in given:
        driver, dot, field = name.rpartition(".")
        if dot and driver not in found:
            raise ValueError(f"the setting {name} is for a driver that does not run ({', '.join(drivers)})")
        takers = [driver] if dot else [one for one in drivers if field in _settings(one)]
        if not takers or field not in _settings(takers[0]):
            known = "; ".join(f"{one}: {', '.join(_settings(one))}" for one in drivers)
            raise ValueError(f"no driver has the setting {name!r} ({known})")
        for one in takers:
            found[one][field] = value
    return found


def _settings(driver: str) -> dict[str, Any]:
    return asdict(driver_named(driver).settings)
