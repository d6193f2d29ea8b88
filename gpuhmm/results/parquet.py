"""Parquet through PyArrow, which is imported when it is needed.

Addresses and PFNs count up: they are stored as differences (DELTA_BINARY_PACKED), everything else as
places in a dictionary of what there is, and all of it compressed.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.hmm.words import (
    HMM_PFN_DMA_MAPPED,
    HMM_PFN_ERROR,
    HMM_PFN_P2PDMA,
    HMM_PFN_P2PDMA_BUS,
    HMM_PFN_VALID,
    HMM_PFN_WRITE,
)
from gpuhmm.results.columns import table_of

#: Columns that are stored as differences.
_COUNTING = ("va", "pa", "pfn", "hmm_pfn", "npages")

#: Columns that a column ``flags`` of HMM_PFN_* bits becomes, and those that are there if one has the bit.
_FLAGS = (("valid", HMM_PFN_VALID), ("write", HMM_PFN_WRITE), ("error", HMM_PFN_ERROR))
_RARE_FLAGS = (
    ("dma_mapped", HMM_PFN_DMA_MAPPED),
    ("p2pdma", HMM_PFN_P2PDMA),
    ("p2pdma_bus", HMM_PFN_P2PDMA_BUS),
)

_SUMMARY_KEY = b"gpuhmm"
_ROW_GROUP = 1 << 20


def pyarrow() -> Any:
    """Return PyArrow.  ImportError that says what to install."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet needs PyArrow: pip install 'gpuhmm[out]'") from error
    return pyarrow


def write(
    path: str | os.PathLike[str],
    table: npt.NDArray[np.void],
    summary: dict[str, Any] | None,
    names: list[str] | None,
) -> None:
    """Write a structured array; 64-bit ``flags`` of runs become columns of truth values."""
    arrow = pyarrow()
    columns: dict[str, Any] = {}
    for name in table.dtype.names or ():
        column = np.ascontiguousarray(table[name])
        if name == "flags" and column.dtype == np.uint64:
            rare = [(title, bit) for title, bit in _RARE_FLAGS if (column & bit).any()]
            columns.update({title: arrow.array((column & bit) != 0) for title, bit in (*_FLAGS, *rare)})
        else:
            columns[name] = arrow.array(column)
    if names is not None and "mapping" in columns:
        places = arrow.array(table["mapping"].astype(np.int32))
        columns["name"] = arrow.DictionaryArray.from_arrays(places, arrow.array(names, type=arrow.string()))
    made = arrow.table(columns)
    if summary is not None:
        # The mappings are in the table; their counts would outweigh it.
        short = {name: value for name, value in summary.items() if name != "mappings"}
        made = made.replace_schema_metadata({_SUMMARY_KEY: json.dumps(short).encode()})
    counting = [name for name in _COUNTING if name in columns]
    arrow.parquet.write_table(
        made,
        path,
        compression="zstd",
        row_group_size=_ROW_GROUP,
        use_dictionary=[name for name in columns if name not in counting and not name.startswith("_")],
        column_encoding=dict.fromkeys(counting, "DELTA_BINARY_PACKED"),
    )


def read(path: str | os.PathLike[str]) -> npt.NDArray[np.void]:
    """Return the structured array that :func:`write` was given."""
    made = pyarrow().parquet.read_table(path)
    bits_of = dict(_FLAGS + _RARE_FLAGS)
    columns: dict[str, npt.NDArray[Any]] = {}
    for name in made.column_names:
        if name == "name":
            continue
        column = made[name].to_numpy()
        if name in bits_of:
            bits = np.where(column, bits_of[name], np.uint64(0))
            columns["flags"] = columns["flags"] | bits if "flags" in columns else bits
        else:
            columns[name] = column
    return table_of(columns)
