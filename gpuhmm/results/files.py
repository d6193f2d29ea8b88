"""Runs and words in files; the suffix says how."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm.runs import RUN_DTYPE, expand_runs
from gpuhmm.mm.profile import KernelProfile
from gpuhmm.results import parquet
from gpuhmm.results.partial_file import whole_file

#: What can be written, and what each suffix means.
SUFFIXES = {
    ".parquet": "a table of Parquet, for PyArrow, pandas, polars, DuckDB",
    ".npy": "an array of NumPy, which can be mapped",
    ".json": "the summary",
}

#: Words that one file takes at most: 4 GiB of them, with their addresses.
MAX_WORDS = 1 << 28

Table = npt.NDArray[np.void]


def check_suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix of ``path``.

    ValueError for one that nothing is written as, ImportError for Parquet without PyArrow.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}, which says what is written")
    if suffix == ".parquet":
        parquet.pyarrow()
    return suffix


def write_results(
    path: str | os.PathLike[str],
    table: Table,
    *,
    summary: dict[str, Any] | None = None,
    names: list[str] | None = None,
) -> None:
    """Write a structured array, or with ``.json`` the ``summary``, to ``path``, whole or not at all.

    ``table`` is any structured array: runs (``gpuhmm.hmm.runs.RUN_DTYPE``, with or without a column
    ``mapping``), or words from :func:`word_table`.  ``names`` are those of the mappings that a column
    ``mapping`` counts; Parquet holds them as a column ``name``.
    """
    suffix = check_suffix(path)
    with whole_file(path) as partial:
        if suffix == ".npy":
            with open(partial, "wb") as file:
                np.save(file, table, allow_pickle=False)
        elif suffix == ".json":
            partial.write_text(json.dumps(summary, indent=1) + "\n")
        else:
            parquet.write(partial, table, summary, names)


def read_results(path: str | os.PathLike[str]) -> Table:
    """Return the structured array that was written to a ``.parquet`` or ``.npy`` file.

    A column ``name`` of Parquet is left out.  ValueError for any other suffix.
    """
    suffix = check_suffix(path)
    if suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if suffix == ".parquet":
        return parquet.read(path)
    raise ValueError(f"a summary holds no table (got {path})")


def word_table(start: int, hmm_pfns: npt.NDArray[np.uint64]) -> Table:
    """Return words with their addresses: ``va`` in bytes and ``hmm_pfn``, uint64 both."""
    table = np.empty(len(hmm_pfns), dtype=[("va", np.uint64), ("hmm_pfn", np.uint64)])
    table["va"] = np.uint64(start) + (np.arange(len(hmm_pfns), dtype=np.uint64) << np.uint64(12))
    table["hmm_pfn"] = hmm_pfns
    return table


def word_table_of_runs(runs: list[npt.NDArray[np.void]], kernel: str | KernelProfile) -> Table:
    """Return the words of ``kernel`` that the runs of several mappings stand for, as :func:`word_table`.

    ValueError for more than MAX_WORDS pages.
    """
    pages = sum(int(some["npages"].sum()) for some in runs)
    if pages > MAX_WORDS:
        raise ValueError(
            f"words are written for at most {MAX_WORDS} pages (got {pages}): choose a part, or write runs"
        )
    table = np.empty(pages, dtype=[("va", np.uint64), ("hmm_pfn", np.uint64)])
    at = 0
    for some in runs:
        if len(some):
            part = word_table(int(some["va"][0]), expand_runs(some, kernel))
            table[at : at + len(part)] = part
            at += len(part)
    return table


def run_table(runs: list[npt.NDArray[np.void]]) -> Table:
    """Return the runs of several mappings as one table, with the place of the mapping in ``mapping``."""
    dtype = np.dtype([*((name, RUN_DTYPE[name]) for name in RUN_DTYPE.names or ()), ("mapping", np.uint32)])
    table = np.empty(sum(map(len, runs)), dtype=dtype)
    at = 0
    for place, some in enumerate(runs):
        part = table[at : at + len(some)]
        for name in RUN_DTYPE.names or ():
            part[name] = some[name]
        part["mapping"] = place
        at += len(some)
    return table
