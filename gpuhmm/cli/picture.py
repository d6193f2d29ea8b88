"""Pictures of experiments; matplotlib is needed only here."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuhmm.errors import BackendError
from gpuhmm.results.whole_file import whole_file

if TYPE_CHECKING:
    from gpuhmm.coalesce.fault_costs import FaultCosts


def draw_fault_costs(costs: list[FaultCosts], title: str, path: Path) -> None:
    """Draw faults by range size, those that nobody asked for apart, and retries; one row a request.

    BackendError where matplotlib is missing.
    """
    try:
        figure: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise BackendError("a picture needs matplotlib: pip install 'gpuhmm[out]'") from None
    requests = list(dict.fromkeys(one.request for one in costs))
    drawing = figure.Figure(figsize=(9, 1 + 3 * len(requests)), layout="constrained")
    drawing.suptitle(title, fontsize=10)
    axes = drawing.subplots(len(requests), 2, squeeze=False)
    for row, request in zip(axes, requests, strict=True):
        shown = [one for one in costs if one.request == request]
        places = range(len(shown))
        asked = [one.faults - one.unasked for one in shown]
        row[0].bar(places, asked, color="tab:blue", label="at pages asked for")
        row[0].bar(
            places, [one.unasked for one in shown], bottom=asked, color="tab:orange", label="at others"
        )
        row[0].set_ylabel(f"{request} requests:\nhandle_mm_fault calls")
        row[0].legend(fontsize=8)
        row[1].bar(places, [one.retries for one in shown], color="tab:red")
        row[1].set_ylabel("retries (-EBUSY)")
        for axis in row:
            axis.set_xticks(list(places), [f"{one.range_pages}" for one in shown])
            axis.set_xlabel("pages of a range")
    target = path if path.suffix else path.with_suffix(".png")
    with whole_file(target) as beside:
        drawing.savefig(beside, dpi=120, format=target.suffix[1:])
