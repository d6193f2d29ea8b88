"""By which rules a recorded trace is cut into batches, merged, sorted and grouped."""

from __future__ import annotations

from dataclasses import dataclass

from gpuhmm.coalesce.drivers.uvm.fetch import BATCH_COUNT

#: Faults that one batch may have; the buffers of the drivers hold no more.
MAX_BATCH = 1 << 16
PAGE = 1 << 12
MAX_WINDOW = 1 << 21


@dataclass(frozen=True)
class Rules:
    """What a driver does to a batch before it services anything.

    ``merge``: faults merge at fetch as UVM's do.  ``ranks``: by access number, what sorts first among the
    faults of a page.  ``batch`` and ``window``: their defaults, in faults and bytes.
    ``any_window``: other windows can be asked for.
    """

    name: str
    merge: bool
    ranks: tuple[int, int, int, int, int]
    batch: int
    window: int
    any_window: bool = True


#: Source of ``uvm``: see gpuhmm.coalesce.drivers.uvm.  Source of ``nouveau``:
#: drivers/gpu/drm/nouveau/nouveau_svm.c:nouveau_svm_fault_cmp, nouveau_svm_fault_priority,
#: nouveau_svm_fault (v6.1): the whole buffer, the least intrusive access first, page by page.  Its
#: comparison keeps 32 bits of the difference of addresses; here addresses compare whole.  ``window`` is no
#: driver's: sorted by page, most intrusive first.
RULES = {
    rules.name: rules
    for rules in (
        Rules("uvm", merge=True, ranks=(4, 3, 2, 1, 0), batch=BATCH_COUNT, window=1 << 21),
        Rules("nouveau", merge=False, ranks=(0, 1, 2, 3, 3), batch=MAX_BATCH, window=PAGE, any_window=False),
        Rules("window", merge=False, ranks=(4, 3, 2, 1, 0), batch=256, window=1 << 21),
    )
}


def rules_of(name: str, batch: int | None, window: int | None) -> tuple[Rules, int, int]:
    """Return the rules of that name, and batch and window with their defaults filled in.

    ValueError for an unknown name, a batch that is not 1 to MAX_BATCH, and a window that is no power
    of two from 4 KiB to 2 MiB or that the rules do not have.
    """
    if name not in RULES:
        raise ValueError(f"rules must be one of {', '.join(RULES)} (got {name!r})")
    rules = RULES[name]
    batch = rules.batch if batch is None else batch
    window = rules.window if window is None else window
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch must be 1 to {MAX_BATCH} faults (got {batch})")
    if not PAGE <= window <= MAX_WINDOW or window & (window - 1):
        raise ValueError(f"window must be a power of two from 4096 to {MAX_WINDOW} bytes (got {window})")
    if window != rules.window and not rules.any_window:
        raise ValueError(f"the window of {name} is {rules.window} bytes (got {window})")
    return rules, batch, window
