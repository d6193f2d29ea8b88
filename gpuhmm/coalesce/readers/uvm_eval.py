"""The kernel log of the patched UVM drivers of uvm-eval (github.com/tallendev/uvm-eval, commit 632b47b).

Lines are those of /dev/kmsg (``4,34763351537,2567418458447,-;f,...``) or what follows the semicolon.
Sources: ``service_fault_batch`` in ``drivers/x86_64-{460.27.04,525.60.13}/faults`` prints ``s`` before a
batch, ``f`` for each of its entries and ``b`` after it; ``uvm_va_block.c`` there prints ``e`` (an evicted
page, 525.60.13: an evicted VA block) and once printed ``p`` (a page added by the prefetcher); the driver
``batchd`` prints one ``b`` a batch with what it counted.  Other lines are the kernel's, and skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.access import ACCESS_NAMES
from gpuhmm.coalesce.readers.lines import MAX_FAULTS, Block, Places, Rows, blocks, refuse_cut
from gpuhmm.coalesce.trace import COLUMNS, FaultTrace

#: Fields of a line of a fault, in the order of the driver's printk.
FAULT_FIELDS = (
    "fault_address",
    "timestamp",
    "fault_type",
    "access_type",
    "access_type_mask",
    "num_instances",
    "client_type",
    "mmu_engine_type",
    "client_id",
    "mmu_engine_id",
    "utlb_id",
    "gpc_id",
    "channel_id",
    "ve_id",
)

#: Fields of a line of a batch, named as ``archive/benchmarksv3/bsize-scripts/README.MD`` names them.
#: Times are in ns, ``transfer_size`` in bytes; ``status`` is 0 for ``b``, that of the driver for ``e``.
BATCH_FIELDS = (
    "start_time",
    "time",
    "cached_faults",
    "coalesced_faults",
    "duplicate_faults",
    "actual_faults",
    "not_already_resident",
    "num_vablock",
    "num_prefetch",
    "num_evict",
    "num_evict_ops",
    "num_transfers",
    "transfer_size",
    "num_mapped_pages",
    "num_mapping_ops",
    "root_chunk_allocs",
    "batch_transfer_time",
    "map_time",
    "unmap_time",
    "service_time",
    "make_resident_time",
    "resident_pages_time",
    "pop_pages_time",
    "unmap_res_time",
    "unmap_rdup_time",
    "rmask_get_alloc",
    "block_gpu_state_time",
    "num_new_vablock",
    "unmap_res_count",
    "num_replays",
    "status",
)

#: What :func:`read_batches` returns.
BATCH_DTYPE = np.dtype([(name, np.uint64) for name in BATCH_FIELDS])

#: UVM_FAULT_TYPE_FATAL and UVM_FAULT_TYPE_COUNT of both drivers.
_FATAL_FAULT = 5
_FAULT_TYPES = 16

#: What each field that becomes a column, or must be a number, is at most.
_MOST = {
    "fault_type": _FAULT_TYPES - 1,
    "access_type": len(ACCESS_NAMES) - 1,
    "access_type_mask": (1 << len(ACCESS_NAMES)) - 1,
    "num_instances": MAX_FAULTS,
    "client_type": 1,
    "mmu_engine_type": 2,
    "client_id": (1 << 16) - 1,
    "mmu_engine_id": (1 << 16) - 1,
    "utlb_id": (1 << 16) - 1,
    "gpc_id": (1 << 8) - 1,
    "channel_id": (1 << 32) - 1,
    "ve_id": (1 << 16) - 1,
}

_COLUMNS = {"time": "timestamp", "va": "fault_address", "access": "access_type", "gpc": "gpc_id"}
_COLUMNS |= {"utlb": "utlb_id", "client": "client_id"}


def read(path: str | os.PathLike[str]) -> FaultTrace:
    """Return the faults of a log of the driver ``faults``.

    The driver logs a batch after it has merged, and sorted by address, what it fetched.  The order of the
    buffer is put back by a stable sort on the time that the device stamped, and an entry with
    ``num_instances`` above 1 becomes as many equal faults one after the other.  Lost for good: the order
    of faults with equal stamps (the logs that are published count in 32 ns), and the times, µTLBs and
    lesser accesses of faults that were merged into another, also those between which another one lay.

    ``utlb`` is ``utlb_id``, which the driver counts over the whole device already (GPC times the µTLBs of
    a GPC plus that of the client, ``parse_fault_entry_common`` of ``uvm_volta_fault_buffer.c``; 0 for
    clients of the hub), ``space`` and ``sm`` are 0: the log holds neither.

    ``notes`` hold ``batches`` and ``unique``, the faults and the entries of each batch, and how many lines
    ``prefetched`` and ``evicted`` there are, faults of a type that is ``fatal``, faults that lie
    ``out_of_batch`` (stamped after one of a later batch) and batches ``unfinished`` (without ``b``).

    ValueError that names the line and the column of what cannot be read, and for a log that ends within a
    batch, or without a newline.  OSError where the file cannot be opened.
    """
    parts: list[dict[str, npt.NDArray[np.uint64]]] = []
    lines: dict[str, list[Places]] = {kind: [] for kind in "sbfpe"}
    total, counted = 0, 0
    for block, begins, kinds in _records(path):
        for kind, found in lines.items():
            found.append(block.first + np.flatnonzero(kinds == ord(kind)))
        faults = np.flatnonzero(kinds == ord("f"))
        counted += _count_batches(block, begins, kinds)
        rows = Rows(path, block, faults, begins[faults] + 2, FAULT_FIELDS)
        part = _faults(rows)
        total = _cap(rows, part["num_instances"], total)
        rows.check()
        refuse_cut(path, block)
        parts.append(part)
    at = {
        kind: np.concatenate(found) if found else np.zeros(0, dtype=np.int64) for kind, found in lines.items()
    }
    if not len(at["f"]) and counted:
        raise ValueError(f"{path}: there are batches (b,...) but no faults (f,...): read_batches reads these")
    if not len(at["f"]) and not len(at["s"]):
        raise ValueError(f"{path}: no line is one of uvm-eval (s, f, p, e or b, then a comma)")
    if len(at["s"]) and (not len(at["b"]) or at["b"][-1] < at["s"][-1]):
        raise ValueError(f"{path}: line {at['s'][-1]}, column b: the file ends within the batch begun here")
    return _trace({name: np.concatenate([part[name] for part in parts]) for name in FAULT_FIELDS}, at)


def read_batches(path: str | os.PathLike[str]) -> npt.NDArray[np.void]:
    """Return what a log of the driver ``batchd`` counted: a structured array of BATCH_DTYPE, one row a batch.

    ``cached_faults`` are all that were fetched, ``coalesced_faults`` what was left after merging at fetch,
    ``actual_faults`` what was left after dropping every duplicate.  ValueError that names the line and the
    column of what cannot be read, and for a file without batches.
    """
    parts: list[npt.NDArray[np.void]] = []
    for block, begins, kinds in _records(path):
        # A batch that failed has its status at the end.
        rows, failed = (
            Rows(path, block, at, begins[at] + 2, names)
            for at, names in (
                (np.flatnonzero(kinds == ord("b")), BATCH_FIELDS[:-1]),
                (np.flatnonzero(kinds == ord("e")), BATCH_FIELDS),
            )
        )
        made = np.zeros(len(rows) + len(failed), dtype=BATCH_DTYPE)
        for name in BATCH_FIELDS:
            made[name][: len(rows)] = 0 if name == "status" else rows.decimal(name)
            made[name][len(rows) :] = failed.decimal(name)
        rows.check()
        failed.check()
        refuse_cut(path, block)
        parts.append(made[np.argsort(np.concatenate((rows.lines, failed.lines)), kind="stable")])
    batches = np.concatenate(parts) if parts else np.zeros(0, dtype=BATCH_DTYPE)
    if not len(batches):
        raise ValueError(f"{path}: no line is a batch of uvm-eval (b,start_time,time,...)")
    return batches


def _records(path: str | os.PathLike[str]) -> Iterator[tuple[Block, Places, npt.NDArray[np.uint8]]]:
    """Yield blocks, where the record of each line begins in them, and its letter, 0 for other lines."""
    for block in blocks(path):
        text, last = block.text, len(block.text) - 1
        semicolons = np.append(np.flatnonzero(text == ord(";")), last)
        first = semicolons[np.searchsorted(semicolons[:-1], block.starts)]
        digits = (text[block.starts] >= ord("0")) & (text[block.starts] <= ord("9"))
        begins = np.where(digits & (first < block.ends), first + 1, block.starts)
        letters = text[np.minimum(begins, last)]
        known = np.isin(letters, np.frombuffer(b"sbfpe", dtype=np.uint8))
        known &= (begins + 1 < block.ends) & (text[np.minimum(begins + 1, last)] == ord(","))
        yield block, begins, np.where(known, letters, np.uint8(0))


def _count_batches(block: Block, begins: Places, kinds: npt.NDArray[np.uint8]) -> int:
    """Return how many lines ``b`` hold what ``batchd`` counts, rather than nothing or a time and a status."""
    ends = np.flatnonzero(kinds == ord("b"))
    commas = np.flatnonzero(block.text == ord(","))
    fields = np.searchsorted(commas, block.ends[ends]) - np.searchsorted(commas, begins[ends])
    return int(np.count_nonzero(fields > 2))


def _faults(rows: Rows) -> dict[str, npt.NDArray[np.uint64]]:
    part = {"fault_address": rows.hexadecimal("fault_address", prefix=False)}
    part |= {name: rows.decimal(name, _MOST.get(name, (1 << 63) - 1)) for name in FAULT_FIELDS[1:]}
    va = part["fault_address"]
    rows.refuse("fault_address", va >= np.uint64(1 << 56), "must be a canonical user address, below 2^56")
    rows.refuse("fault_address", va & np.uint64(4095) != 0, "must be aligned to 4096")
    rows.refuse("num_instances", part["num_instances"] == 0, "must be at least 1")
    shift = np.minimum(part["access_type"], np.uint64(63))
    lacks = (part["access_type_mask"] >> shift) & np.uint64(1) == 0
    rows.refuse("access_type_mask", lacks, "must hold the bit of access_type")
    return part


def _cap(rows: Rows, instances: npt.NDArray[np.uint64], total: int) -> int:
    """Return the faults up to here; the row that goes beyond MAX_FAULTS is refused."""
    sums = np.cumsum(np.minimum(instances, np.uint64(MAX_FAULTS)), dtype=np.uint64) + np.uint64(total)
    rows.refuse("num_instances", sums > np.uint64(MAX_FAULTS), f"a file may hold {MAX_FAULTS} faults")
    return int(sums[-1]) if len(sums) else total


def _trace(faults: dict[str, npt.NDArray[np.uint64]], at: dict[str, Places]) -> FaultTrace:
    instances = faults["num_instances"].astype(np.int64)
    batch = np.searchsorted(at["s"], at["f"])  # 0 for what was logged before the first batch
    unique = np.bincount(batch, minlength=len(at["s"]) + 1)
    raw = np.bincount(batch, weights=instances, minlength=len(at["s"]) + 1).astype(np.int64)
    skip = 0 if unique[0] else 1
    rows = np.repeat(np.arange(len(instances)), instances)
    rows = rows[np.argsort(faults["timestamp"][rows], kind="stable")]
    highest = np.maximum.accumulate(batch[rows]) if len(rows) else batch[rows]
    ends = np.searchsorted(at["b"], at["s"])
    columns = {name: faults[field][rows].astype(COLUMNS[name]) for name, field in _COLUMNS.items()}
    notes = {
        "format": "uvm-eval",
        "batches": raw[skip:].tolist(),
        "unique": unique[skip:].tolist(),
        "prefetched": len(at["p"]),
        "evicted": len(at["e"]),
        "fatal": int(instances[faults["fault_type"] >= np.uint64(_FATAL_FAULT)].sum()),
        "out_of_batch": int(np.count_nonzero(batch[rows] < highest)),
        "unfinished": int(np.count_nonzero(np.diff(ends) == 0)),
    }
    return FaultTrace.of(**columns, notes=notes)
