"""What a driver's steps take, in ns: calibrations with a source each.

They order events and show where time would go.  They are measurements of other people's machines, not a
prediction for yours.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Costs:
    """Time of each step in ns; ``source`` says where the figures come from.

    ``interrupt`` from a fault to its handler; ``read_put`` one read of PUT from the device; ``fetch`` and
    ``preprocess`` for each entry read; ``flush`` for each entry dropped; ``batch`` once a batch; ``block``
    for each range given to hmm_range_fault; ``walk`` for each page walked; ``fault`` for each
    handle_mm_fault; ``page`` for each entry of the device page table that changes, with moving the page's
    data where a driver does that; ``replay`` one replay.
    """

    name: str
    source: str
    interrupt: float
    read_put: float
    fetch: float
    preprocess: float
    flush: float
    batch: float
    block: float
    walk: float
    fault: float
    page: float
    replay: float

    def __post_init__(self) -> None:
        for step in STEPS:
            value = getattr(self, step)
            if not 0 <= value < 1e12:
                raise ValueError(f"{step} must be a time in ns from 0 to 10^12 (got {value})")

    def with_times(self, **times: float) -> Costs:
        """Return these costs with some times replaced, named so.  ValueError for an unknown step."""
        for name in times:
            if name not in STEPS:
                raise ValueError(f"a cost must be one of {', '.join(STEPS)} (got {name!r})")
        changed: dict[str, Any] = {"name": f"{self.name} (changed)", **times}
        return replace(self, **changed)


#: The steps that take time.
STEPS = tuple(field.name for field in fields(Costs))[2:]

COSTS = {
    "sc21-titan-v": Costs(
        "sc21-titan-v",
        "Allen & Ge, SC21, Titan V, driver 460.27.04: a batch of the regular pattern takes about 40 µs and "
        "0.68 µs for each KiB moved (line fitted to the published figure); shares of fetch, preprocess and "
        "replay as SpecAsync-UVM measured them on a T4",
        interrupt=5_000,
        read_put=1_000,
        fetch=100,
        preprocess=60,
        flush=20,
        batch=18_000,
        block=500,
        walk=5,
        fault=500,
        page=2_700,
        replay=2_000,
    ),
    "specasync-t4": Costs(
        "specasync-t4",
        "SpecAsync-UVM, T4, driver 595.71.05: median batch 79.6 to 92.3 µs for a stencil; drain 5 to 18 %, "
        "preprocess 4 to 15 %, service 61 to 74 %, replay about 2 µs",
        interrupt=5_000,
        read_put=1_000,
        fetch=150,
        preprocess=120,
        flush=20,
        batch=20_000,
        block=1_500,
        walk=5,
        fault=500,
        page=1_500,
        replay=2_000,
    ),
    "far-fault-45us": Costs(
        "far-fault-45us",
        "UVMSmart (ISCA19, IPDPS20): 45 µs for each far fault, whatever it is about (read in the simulator's "
        "configuration); replay free",
        interrupt=0,
        read_put=0,
        fetch=0,
        preprocess=0,
        flush=0,
        batch=0,
        block=0,
        walk=0,
        fault=0,
        page=45_000,
        replay=0,
    ),
    "mi300a": Costs(
        "mi300a",
        "arXiv 2508.12743 as others quote it: a fault of one page from the GPU takes 16 to 18 µs; how that "
        "divides is assumed",
        interrupt=5_000,
        read_put=500,
        fetch=100,
        preprocess=0,
        flush=20,
        batch=4_000,
        block=4_000,
        walk=5,
        fault=500,
        page=1_000,
        replay=2_000,
    ),
}


def costs_named(name: str) -> Costs:
    """Return a calibration.  ValueError for a name that is none."""
    if name not in COSTS:
        raise ValueError(f"costs must be one of {', '.join(COSTS)} (got {name!r})")
    return COSTS[name]
