"""The address spaces that a device works on, filled before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from gpuhmm.coalesce.areas import DeviceAreas
from gpuhmm.coalesce.layouts import layout_named
from gpuhmm.memory.fault.model import FaultModel
from gpuhmm.memory.pages.physical import PhysicalMemory
from gpuhmm.memory.space import AddressSpace
from gpuhmm.mm.profile import KernelProfile


def spaces_over(
    areas: DeviceAreas, layout: str = "written", kernel: str | KernelProfile = "v6.1"
) -> list[AddressSpace]:
    """Return a space for each number that ``areas`` uses, with a VMA filled by ``layout`` over each area.

    All spaces are on one machine.  Numbers that no area uses share one empty space.  ValueError for a
    layout that there is not.
    """
    filled = layout_named(layout)
    memory = PhysicalMemory()
    count = int(areas.spaces.max(initial=0)) + 1
    levels = 5 if int(areas.ends.max(initial=0)) > 1 << 47 else 4

    def space() -> AddressSpace:
        return AddressSpace(levels=levels, kernel=kernel, faults=FaultModel(), memory=memory)

    unused = space()
    used = set(areas.spaces.tolist())
    spaces = [space() if number in used else unused for number in range(count)]
    for area in areas.areas:
        filled.fill(spaces[area.space], area.start, area.end)
    return spaces


def check_spaces(spaces: Sequence[AddressSpace], areas: DeviceAreas) -> None:
    """ValueError unless there is a space for every area that reaches as far."""
    for area in areas.areas:
        if area.space >= len(spaces):
            raise ValueError(f"area {area} needs space {area.space} (got {len(spaces)} spaces)")
        if area.end > spaces[area.space].task_size:
            raise ValueError(
                f"area {area} must end below {spaces[area.space].task_size:#x}, where its space ends"
            )
