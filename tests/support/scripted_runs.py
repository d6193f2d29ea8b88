"""Runs of scripted devices under a driver, and a CPU that interferes when it is told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from scripted_device import ScriptedDevice

from gpuhmm.coalesce.areas import Area, DeviceAreas
from gpuhmm.coalesce.costs import COSTS, STEPS
from gpuhmm.coalesce.drivers.registry import driver_named
from gpuhmm.coalesce.run import coalesce
from gpuhmm.coalesce.spaces import spaces_over

BASE = 1 << 40
PAGE = 4096

#: No step takes any time but those that a test names.
FREE_OF_COST = COSTS["sc21-titan-v"].with_times(**dict.fromkeys(STEPS, 0))


@dataclass
class Interference:
    """Calls ``act(n)`` when the model lets the CPU work for the n-th time, ``when_due()`` at ``due`` ns."""

    act: Callable[[int], None]
    due: int = 1 << 62
    when_due: Callable[[], None] = lambda: None
    count: int = field(default=0, init=False)

    def run(self, now: int) -> list[tuple[int, int, int]]:
        self.act(self.count)
        self.count += 1
        if now >= self.due:
            self.due = 1 << 62
            self.when_due()
        return []


def areas(*npages):
    """Areas of so many pages, the first at BASE, each 512 MiB behind the one before."""
    starts = [BASE + (index << 29) for index in range(len(npages))]
    return DeviceAreas([Area(0, start, start + n * PAGE) for start, n in zip(starts, npages, strict=True)])


def device(accesses, npages=2048, **more):
    """A device with (time, page, access, utlb) from BASE on."""
    made = npages if isinstance(npages, DeviceAreas) else areas(npages)
    rows = [(time, BASE + page * PAGE, access, utlb) for time, page, access, utlb in accesses]
    return ScriptedDevice(made, rows, **more)


def space_of(a_device, layout="written"):
    return spaces_over(a_device.areas, layout)


def run(a_device, driver, settings=None, spaces="written", **more):
    """Run a driver by name, or a Driver, over a layout or given spaces."""
    chosen = driver_named(driver, settings) if isinstance(driver, str) else driver
    filled = space_of(a_device, spaces) if isinstance(spaces, str) else spaces
    return coalesce(a_device, filled, chosen, backend="cpu", **more)


def asked(result):
    """The ranges that were asked for and accepted: (first page, past the last) from BASE on, in order."""
    marks = result.timeline.marks()
    served = marks[marks["kind"] == 1]
    return [((int(m["va"]) - BASE) // PAGE, (int(m["va_end"]) - BASE) // PAGE) for m in served]


def mapped(a_device):
    """The page numbers that the device may reach."""
    return [place for place in range(a_device.areas.npages) if a_device.areas.entries[place]]


def invalidate(space, page, npages=1):
    """What an invalidation without any change tells the notifiers."""
    start = BASE + page * PAGE
    with space.subscriptions.invalidate_range(start, start + npages * PAGE):
        pass
