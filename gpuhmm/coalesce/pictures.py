"""Pictures of runs: batches over time, faults of a VA block, duplicates, addresses against time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.areas import BLOCK_SHIFT
from gpuhmm.coalesce.run import CoalesceRun
from gpuhmm.coalesce.trace import FaultTrace
from gpuhmm.results.figure import new_figure, picture_suffix, plain_text, save_figure

_RED, _BLUE, _ORANGE, _GREEN, _GREY, _PURPLE = (
    "#b22222",
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#bbbbbb",
    "#cc79a7",
)

#: Rows and columns of a heat map at most.
_ROWS, _COLUMNS = 128, 160
#: Bars of duplicates at most.
_BARS = 60
_BLOCK_PAGES = 1 << (BLOCK_SHIFT - 12)


def draw_runs(path: str | os.PathLike[str], runs: Sequence[CoalesceRun], title: str) -> None:
    """Draw runs into a ``.png``, ``.svg`` or ``.pdf`` file, a row a run, whole or not at all.

    From left to right: the faults of each batch over the model's time; how many VA blocks had how many
    faults in a batch; duplicates by kind, as shares of what was read; and faults by address and time, where
    2 MiB blocks without a fault are left out.  Runs need a timeline that kept what happened.  ValueError for
    no run and for other suffixes, ImportError without Matplotlib, OSError for a file that cannot be written.
    """
    if not runs:
        raise ValueError("a picture needs at least one run")
    picture_suffix(path)
    figure = new_figure(19, 0.7 + 3.4 * len(runs), layout="constrained")
    figure.suptitle(plain_text(title), fontsize=12, parse_math=False)
    rows = figure.subplots(len(runs), 4, squeeze=False, width_ratios=(1.15, 0.85, 1, 1.3))
    for run, axes in zip(runs, rows, strict=True):
        faults, batch_of = run.timeline.faults(), run.timeline.batch_of_faults()
        _draw_batches(axes[0], run)
        _draw_blocks(axes[1], faults, batch_of)
        _draw_duplicates(axes[2], run.batches)
        _draw_addresses(figure, axes[3], faults, _time_limits(run))
        axes[0].set_ylabel(f"{run.driver}\n\nfaults of a batch", fontsize=10)
        for axis in axes:
            axis.tick_params(labelsize=8)
    for axis, words in zip(
        rows[0],
        ("batch size", "faults of a VA block (2 MiB)", "what was read from the buffer", "faults"),
        strict=True,
    ):
        axis.set_title(words, fontsize=10)
    save_figure(figure, path)


def _draw_batches(axis: Any, run: CoalesceRun) -> None:
    table = run.batches
    at = table["start"].astype(np.float64) / 1e6
    shown = [("raw", _GREY, "read"), ("coalesced", _ORANGE, "after merging"), ("unique", _BLUE, "pages")]
    if np.array_equal(table["raw"], table["coalesced"]):
        del shown[1]
    size = 14 if len(table) < 200 else 4
    for place, (name, colour, words) in enumerate(shown):
        # What lies under another is larger, and is still seen where both are equal.
        wide = size * 2 ** (len(shown) - 1 - place)
        axis.scatter(at, table[name], s=wide, color=colour, label=words, linewidths=0, rasterized=True)
    axis.set_ylim(0, 1.25 * max(int(table["raw"].max(initial=1)), 1))
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.set_xlim(*_time_limits(run))
    axis.set_xlabel("model time, ms", fontsize=9)
    axis.legend(fontsize=8, loc="upper right", ncols=3, frameon=False, handletextpad=0.2)


def _time_limits(run: CoalesceRun) -> tuple[float, float]:
    """Return the model's ms from a little before the start to a little beyond the end."""
    last = max(run.model_ns / 1e6, 1e-6)
    return -0.02 * last, 1.02 * last


def _draw_blocks(axis: Any, faults: FaultTrace, batch_of: npt.NDArray[np.uint32]) -> None:
    every, different = faults_of_blocks(faults, batch_of)
    most = int(every.max(initial=1))
    edges = np.unique(np.floor(np.logspace(0, np.log2(most + 1), 24, base=2)).astype(np.int64))
    edges = np.append(edges[edges <= most], most + 1)
    for counts, colour, words in ((every, _GREY, "faults"), (different, _BLUE, "different pages")):
        heights = np.histogram(counts, bins=edges)[0]
        axis.stairs(heights, edges, fill=colour == _GREY, color=colour, label=words, linewidth=1.5)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel("of a VA block in a batch", fontsize=9)
    axis.set_ylabel("VA blocks", fontsize=9)
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8, framealpha=0.85)


def faults_of_blocks(
    faults: FaultTrace, batch_of: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return for each VA block of each batch how many faults it has, and how many different pages.

    int64[n] both, n the VA blocks of all batches together.
    """
    place = (faults.space.astype(np.uint64) << np.uint64(45)) | (faults.va >> np.uint64(12))
    pages, of_fault = np.unique(place, return_inverse=True)
    of_page = np.unique(pages >> np.uint64(BLOCK_SHIFT - 12), return_inverse=True)[1]
    batch = batch_of.astype(np.int64) << 32
    batch_pages = np.unique(batch | of_fault)
    of_batch_page = of_page[batch_pages & ((1 << 32) - 1)]
    every = np.unique(batch | of_page[of_fault], return_counts=True)[1]
    return every, np.unique((batch_pages >> 32 << 32) | of_batch_page, return_counts=True)[1]


#: Parts of what a batch read, with their colours; together they are all of it.
_PARTS = (
    ("first of its page", _BLUE),
    ("page mapped already", _GREEN),
    ("again, same \N{GREEK SMALL LETTER MU}TLB", _ORANGE),
    ("again, other \N{GREEK SMALL LETTER MU}TLB", _PURPLE),
    ("other", _GREY),
)


def parts_of_batches(table: npt.NDArray[np.void]) -> npt.NDArray[np.float64]:
    """Return what each batch read, by kind: float64[5, n], whose sum over kinds is ``raw``."""
    columns = {name: table[name].astype(np.float64) for name in table.dtype.names or ()}
    covered = np.minimum(columns["covered"], columns["unique"])
    known = [columns["unique"] - covered, covered, columns["same_utlb"], columns["cross_utlb"]]
    return np.array([*known, np.maximum(columns["raw"] - np.sum(known, axis=0), 0)])


def _draw_duplicates(axis: Any, table: npt.NDArray[np.void]) -> None:
    parts = parts_of_batches(table)
    count = parts.shape[1]
    edges = np.unique(np.linspace(0, count, min(count, _BARS) + 1).astype(np.int64))
    summed = np.add.reduceat(parts, edges[:-1], axis=1) if count else parts
    shares = 100 * summed / np.maximum(summed.sum(axis=0), 1)
    base = np.zeros(shares.shape[1])
    for (words, colour), share in zip(_PARTS, shares, strict=True):
        if share.any():
            axis.stairs(base + share, edges, baseline=base, fill=True, color=colour, label=words)
        base = base + share
    axis.set_xlim(0, max(count, 1))
    axis.set_ylim(0, 100)
    axis.set_xlabel("batch", fontsize=9)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel("%", fontsize=9)
    if count:
        axis.legend(fontsize=8, loc="lower right", framealpha=0.85)


def squeezed(faults: FaultTrace) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64], list[int]]:
    """Return the row of each fault, in pages, when 2 MiB blocks without a fault are left out.

    And the address of each block that is left, uint64[blocks], and the blocks before which there was a gap.
    """
    key = (faults.space.astype(np.uint64) << np.uint64(45)) | (faults.va >> np.uint64(12))
    shift = np.uint64(BLOCK_SHIFT - 12)
    blocks, of_fault = np.unique(key >> shift, return_inverse=True)
    rows = of_fault.astype(np.int64) * _BLOCK_PAGES + (key & np.uint64(_BLOCK_PAGES - 1)).astype(np.int64)
    addresses = (blocks & np.uint64((1 << 36) - 1)) << np.uint64(BLOCK_SHIFT)
    return rows, addresses, [int(at) + 1 for at in np.flatnonzero(np.diff(blocks) != 1)]


def _cells(faults: int, most: int) -> int:
    """Return into how many rows or columns a heat map of so many faults goes: cells of a few are seen."""
    return min(max(faults // 8, 48), most)


def _draw_addresses(figure: Any, axis: Any, faults: FaultTrace, limits: tuple[float, float]) -> None:
    rows, blocks, gaps = squeezed(faults)
    axis.set_xlabel("model time, ms", fontsize=9)
    if not len(faults):
        axis.text(0.5, 0.5, "no faults", ha="center", transform=axis.transAxes)
        return
    pages = len(blocks) * _BLOCK_PAGES
    times = faults.time.astype(np.float64) / 1e6
    # Half a block would be as high as a whole one: bins are all of one height.
    per_row = -(-pages // _cells(len(faults), _ROWS))
    bins = -(-pages // per_row)
    counts, x, y = np.histogram2d(
        times,
        rows,
        bins=(_cells(len(faults), _COLUMNS), bins),
        range=(limits, (0, bins * per_row)),
    )
    seen = np.ma.masked_equal(counts.T, 0)
    most = max(int(counts.max()), 2)
    mesh = axis.pcolormesh(x, y, seen, norm="log", vmin=1, vmax=most, cmap="viridis_r", rasterized=True)
    bar = figure.colorbar(mesh, ax=axis, pad=0.01)
    ticks = [1, *(tick for tick in (2, 5, 10, 100, 1000, 10**4, 10**5, 10**6) if tick <= most)]
    bar.set_ticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=8)
    bar.set_label(f"faults; a cell: {per_row * 4:,} KiB, {x[1] - x[0]:.3g} ms", fontsize=8)
    if len(gaps) <= 24:
        for gap in gaps:
            axis.axhline(gap * _BLOCK_PAGES, color=_RED, linewidth=0.5)
    shown = np.unique(np.linspace(0, len(blocks) - 1, 6).astype(np.int64))
    axis.set_yticks(shown * _BLOCK_PAGES, [f"{int(blocks[place]):#x}" for place in shown])
    axis.set_ylim(0, pages)
    axis.set_ylabel("address; red: a gap left out" if 0 < len(gaps) <= 24 else "address", fontsize=9)
