"""Pictures of fault costs: faults and retries by the size of a range."""

from __future__ import annotations

import os
from collections.abc import Sequence

from gpuhmm.coalesce.fault_costs import FaultCosts
from gpuhmm.results.figure import new_figure, plain_text, save_figure


def draw_fault_costs(path: str | os.PathLike[str], costs: Sequence[FaultCosts], title: str) -> None:
    """Draw faults by range size, those that nobody asked for apart, and retries; a row a request.

    Suffixes and errors as of :mod:`gpuhmm.results.figure`.
    """
    requests = list(dict.fromkeys(one.request for one in costs))
    figure = new_figure(9, 1 + 3 * len(requests), layout="constrained")
    figure.suptitle(plain_text(title), fontsize=10, parse_math=False)
    axes = figure.subplots(len(requests), 2, squeeze=False)
    for row, request in zip(axes, requests, strict=True):
        shown = [one for one in costs if one.request == request]
        places = range(len(shown))
        asked, unasked = [one.faults - one.unasked for one in shown], [one.unasked for one in shown]
        row[0].bar(places, asked, color="tab:blue", label="at pages asked for")
        row[0].bar(places, unasked, bottom=asked, color="tab:orange", label="at others")
        row[0].set_ylabel(f"{request} requests:\nhandle_mm_fault calls")
        row[0].legend(fontsize=8)
        row[1].bar(places, [one.retries for one in shown], color="tab:red")
        row[1].set_ylabel("retries (-EBUSY)")
        for axis in row:
            axis.set_xticks(list(places), [f"{one.range_pages}" for one in shown])
            axis.set_xlabel("pages of a range")
    save_figure(figure, path)
