"""Pictures of sweeps: heat maps over two axes, lines over one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpuhmm.coalesce.axes import Axes, value_words
from gpuhmm.coalesce.sweep import Sweep
from gpuhmm.results.figure import new_figure, picture_suffix, plain_text, save_figure

#: What is drawn, and in words; what is 0 at every point is left out.
_COUNTERS = {
    "batches": "batches",
    "model_ns": "model time, ms",
    "raw": "faults read",
    "duplicates": "duplicates, %",
    "hmm_calls": "hmm_range_fault calls",
    "handle_mm_faults": "handle_mm_fault calls",
    "pages_unasked": "pages nobody asked for",
    "device_overflows": "faults that found the buffer full",
}

#: Cells of a heat map up to which each has its number.
_NUMBERED = 120


def check_drawable(axes: Mapping[str, Sequence[object]]) -> None:
    """ValueError unless one or two axes have more than one value: more cannot be drawn."""
    wide = [name for name, values in axes.items() if len(values) > 1]
    if not 1 <= len(wide) <= 2:
        raise ValueError(
            "a sweep is drawn over one or two axes of more than one value "
            f"(got {len(wide)}{': ' if wide else ''}{', '.join(wide)})"
        )


def draw_sweep(path: str | os.PathLike[str], made: Sweep, title: str) -> None:
    """Draw the counters of a sweep into a ``.png``, ``.svg`` or ``.pdf`` file, whole or not at all.

    One axis gives lines, two give heat maps, the first axis from left to right.  ValueError for other
    sweeps and suffixes, ImportError without Matplotlib, OSError for a file that cannot be written.
    """
    picture_suffix(path)
    check_drawable(made.axes)
    names = [name for name, values in made.axes.items() if len(values) > 1]
    shown = [name for name in _COUNTERS if any(row.get(name) for row in made.rows)] or ["batches"]
    columns = min(len(shown), 3)
    height = -(-len(shown) // columns)
    figure = new_figure(5.6 * columns, 0.7 + 4.2 * height, layout="constrained")
    figure.suptitle(plain_text(title), fontsize=12, parse_math=False)
    panels = figure.subplots(height, columns, squeeze=False).reshape(-1)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    for name, panel in zip(shown, panels, strict=False):
        values = np.array([_value(name, row.get(name)) for row in made.rows])
        values = values.reshape([len(made.axes[axis]) for axis in names])
        panel.set_title(_COUNTERS[name], fontsize=10)
        if len(names) == 1:
            _line(panel, values, names[0], made.axes)
        else:
            _heat_map(figure, panel, values, names, made.axes)
    save_figure(figure, path)


def _value(name: str, value: Any) -> float:
    if value is None:
        return float("nan")
    return float(value) * {"model_ns": 1e-6, "duplicates": 100}.get(name, 1)


def _line(panel: Any, values: Any, name: str, axes: Axes) -> None:
    places = range(len(values))
    panel.plot(places, values, marker="o")
    panel.set_xticks(places, value_words(axes[name]), fontsize=8, rotation=45 if len(values) > 8 else 0)
    panel.set_xlabel(name, fontsize=9)
    top = np.nanmax(values) if np.isfinite(values).any() else 0
    panel.set_ylim(0, 1.08 * top or 1)
    panel.grid(visible=True, alpha=0.3)


def _heat_map(figure: Any, panel: Any, values: Any, names: list[str], axes: Axes) -> None:
    image = panel.imshow(values.T, origin="lower", aspect="auto", cmap="viridis")
    figure.colorbar(image, ax=panel, pad=0.01)
    for set_ticks, set_label, name in (
        (panel.set_xticks, panel.set_xlabel, names[0]),
        (panel.set_yticks, panel.set_ylabel, names[1]),
    ):
        labels = value_words(axes[name])
        set_ticks(range(len(labels)), labels, fontsize=8)
        set_label(name, fontsize=9)
    if len(values) > 8:
        panel.tick_params(axis="x", rotation=45)
    if values.size <= _NUMBERED:
        for (x, y), value in np.ndenumerate(values):
            if np.isfinite(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
                text = _short(value)
                panel.text(x, y, text, ha="center", va="center", fontsize=7, color="w" if dark else "k")


def _short(value: float) -> str:
    """Return a number in at most five characters or so."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 10 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"
