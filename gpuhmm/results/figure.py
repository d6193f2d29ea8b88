"""The door of all pictures: what they are written as, and Matplotlib, which is imported when it is needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gpuhmm.results.partial_file import whole_file

#: What a picture can be written as; each with the metadata without which it would hold the date.
_UNDATED: dict[str, dict[str, None] | None] = {
    ".png": None,
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}

_DPI = 120


def picture_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix of ``path``.

    ValueError for one that no picture is written as, ImportError without Matplotlib.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _UNDATED:
        raise ValueError(f"{path} must end in one of {', '.join(_UNDATED)}, which says what is drawn")
    _figure_class()
    return suffix


def new_figure(width: float, height: float, **options: Any) -> Any:
    """Return an empty Figure of Matplotlib, in inches.  ImportError without Matplotlib."""
    return _figure_class()(figsize=(width, height), dpi=_DPI, **options)


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure to ``path``, whole or not at all.

    The file does not hold the date.  Errors as of :func:`picture_suffix`, and OSError for a file that cannot
    be written.
    """
    suffix = picture_suffix(path)
    with whole_file(path) as partial:
        figure.savefig(partial, format=suffix[1:], metadata=_UNDATED[suffix])


def rectangle(left: float, bottom: float, width: float, height: float, **style: Any) -> Any:
    """Return a rectangle, for ``add_patch`` and for legends."""
    from matplotlib.patches import Rectangle

    return Rectangle((left, bottom), width, height, **style)


def plain_text(text: str) -> str:
    """Return text that every font has; draw it with ``parse_math=False``."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need Matplotlib: pip install 'gpuhmm[out]'") from error
    return Figure
