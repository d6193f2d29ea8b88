"""Pictures of address spaces: strips, drawn."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from gpuhmm.capture.mapping import Mapping
from gpuhmm.results.byte_size import byte_size
from gpuhmm.results.figure import new_figure, plain_text, rectangle, save_figure
from gpuhmm.results.strips import STATES, Strip

#: One colour a state, in their order; told apart also without seeing red from green.
_COLOURS = ("#332288", "#0072b2", "#e69f00", "#f0e442", "#cc79a7", "#b22222", "#e8e8e8")

#: The colour of an area by what it allows: nothing, reading, writing, executing.
_NO_ACCESS, _READ, _WRITE, _EXEC = "#999999", "#cfe3f1", "#f6c98b", "#a6d5a6"

_WIDTH = 14.0  # inches, also of the labels
_STRIP = 0.62  # inches
_MARGINS = 1.25  # inches above and below the strips
#: A name is written where its area takes that part of the strip, for each letter.
_LETTER = 0.0072
#: Areas narrower than that part of the strip have no outline: there would be nothing else to see.
_OUTLINED = 0.004


def draw(path: str | os.PathLike[str], strips: list[Strip], title: str) -> None:
    """Write the strips as a picture to ``path``; suffixes and errors as of :mod:`gpuhmm.results.figure`.

    Each strip has two bands: above, every column is filled from below by what part of its pages is in
    which state; under it lie the areas, by what they allow, with names where there is room.
    """
    height = _MARGINS + _STRIP * len(strips)
    figure = new_figure(_WIDTH, height)
    top = 1 - 0.75 / height
    for place, strip in enumerate(strips):
        bottom = top - _STRIP * (place + 1) / height
        axes = figure.add_axes((0.135, bottom, 0.72, _STRIP * 0.82 / height))
        _draw_strip(axes, strip)
    _draw_frame(figure, title, height)
    save_figure(figure, path)


def _draw_strip(axes: Any, strip: Strip) -> None:
    count = strip.pages.shape[1]
    total = np.maximum(np.diff(strip.edges).astype(np.int64) >> 12, 1)
    x = np.arange(count + 1) / count
    base = np.zeros(count)
    for state, colour in enumerate(_COLOURS):
        upper = base + strip.pages[state] / total
        if strip.pages[state].any():
            axes.stairs(upper, x, baseline=base, fill=True, color=colour, linewidth=0)
        base = upper
    for mapping in strip.mappings:
        low, high = (float(_position(strip, address)) for address in (mapping.start, mapping.end))
        # One that is thinner than a column is still seen.
        wide = max(high - low, 0.5 / 512)
        axes.add_patch(_area(low, wide, _area_colour(mapping), outlined=wide > _OUTLINED))
        name = _fitting_name(mapping.name, high - low)
        if name:
            middle = (low + high) / 2
            axes.text(middle, -0.25, name, ha="center", va="center", fontsize=6.5, parse_math=False)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.45, 1)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_linewidth(0.4)
    per_column = byte_size((strip.end - strip.start) // count)
    axes.text(
        -0.008,
        0.35,
        f"{strip.start:x}",
        ha="right",
        va="center",
        family="monospace",
        fontsize=8,
    )
    axes.text(
        1.008,
        0.35,
        f"{byte_size(strip.end - strip.start)}\n{per_column} a column",
        ha="left",
        va="center",
        fontsize=7,
    )


def _draw_frame(figure: Any, title: str, height: float) -> None:
    figure.text(
        0.01,
        1 - 0.22 / height,
        plain_text(title),
        fontsize=10,
        va="center",
        family="monospace",
        parse_math=False,
    )
    labels = [
        *zip(_COLOURS, STATES, strict=True),
        (_NO_ACCESS, "area without access"),
        (_READ, "r"),
        (_WRITE, "rw"),
        (_EXEC, "x"),
    ]
    handles = [_area(0, 1, colour) for colour, _ in labels]
    figure.legend(
        handles,
        [label for _, label in labels],
        loc="lower center",
        ncols=len(labels),
        fontsize=7,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.2,
    )


def _area(x: float, width: float, colour: str, *, outlined: bool = True) -> Any:
    line = 0.3 if outlined else 0
    return rectangle(x, -0.42, width, 0.36, facecolor=colour, edgecolor="#444444", linewidth=line)


def _fitting_name(name: str, width: float) -> str:
    """Return the name, or what follows its last slash, or nothing: what fits into an area."""
    name = plain_text(name)
    for text in (name, name.rpartition("/")[2]):
        if width > _LETTER * len(text):
            return text
    return ""


def _position(strip: Strip, address: int) -> float:
    """Return where an address lies in a strip, 0 to 1: columns differ by a page at most."""
    columns = len(strip.edges) - 1
    at = int(np.searchsorted(strip.edges, np.uint64(address), side="right")) - 1
    if at >= columns:
        return 1.0
    low, high = int(strip.edges[at]), int(strip.edges[at + 1])
    return (at + (address - low) / (high - low)) / columns


def _area_colour(mapping: Mapping) -> str:
    if "x" in mapping.perms:
        return _EXEC
    if "w" in mapping.perms:
        return _WRITE
    return _READ if "r" in mapping.perms else _NO_ACCESS
