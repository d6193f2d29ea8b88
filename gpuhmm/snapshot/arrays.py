"""The arrays of a snapshot: written with their checksum, mapped when they are read."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.errors import SnapshotError
from gpuhmm.snapshot.manifest import ArrayRecord

Array = npt.NDArray[Any]

_CHUNK = 1 << 24
#: numpy's header of a plain array is 128 bytes; more than this is none.
_MAX_HEADER = 4096


def write_array(folder: Path, name: str, array: Array) -> ArrayRecord:
    """Write ``name``.npy, down to the disk, and return its record."""
    contiguous = np.ascontiguousarray(array)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(contiguous))
    digest = hashlib.sha256(head.getvalue())
    data = contiguous.reshape(-1).view(np.uint8).data
    with open(folder / f"{name}.npy", "xb") as file:
        file.write(head.getvalue())
        for at in range(0, len(data), _CHUNK):
            part = data[at : at + _CHUNK]
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    size = len(head.getvalue()) + len(data)
    return ArrayRecord(contiguous.dtype.str, list(contiguous.shape), size, digest.hexdigest())


def map_array(folder: Path, name: str, record: ArrayRecord, verify: bool) -> Array:
    """Return ``name``.npy mapped copy-on-write: it can be changed, the file never is.

    SnapshotError for a file that is missing or is not what its record says; ``verify`` reads all of it
    for its checksum.
    """
    path = folder / f"{name}.npy"
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise SnapshotError(f"the snapshot {folder} lacks {name}.npy: {error.strerror}") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        if size != record.bytes:
            raise SnapshotError(f"{path} is damaged: it must have {record.bytes} bytes (got {size})")
        if verify and _checksum(file.fileno()) != record.sha256:
            raise SnapshotError(f"{path} is damaged: its checksum does not fit")
        dtype, shape, offset = _header(path, file)
        if (dtype.str, list(shape)) != (record.dtype, record.shape) or dtype.hasobject:
            raise SnapshotError(
                f"{path} must be {record.dtype}{record.shape} as the manifest says "
                f"(got {dtype.str}{list(shape)})"
            )
        count = int(np.prod(shape, dtype=object))
        if offset + count * dtype.itemsize != size:
            raise SnapshotError(f"{path} is damaged: its size does not fit its shape")
        if not count:
            return np.empty(shape, dtype=dtype)
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    return np.frombuffer(mapped, dtype=dtype, count=count, offset=offset).reshape(shape)


def _checksum(fd: int) -> str:
    digest = hashlib.sha256()
    at = 0
    while part := os.pread(fd, _CHUNK, at):
        digest.update(part)
        at += len(part)
    return digest.hexdigest()


def _header(path: Path, file: Any) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Return dtype, shape and where the data begins."""
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version} of the format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_MAX_HEADER)
        if fortran:
            raise ValueError("Fortran order")
    except (ValueError, SyntaxError, EOFError, OverflowError) as error:
        raise SnapshotError(f"{path} is damaged: no array of NumPy ({error})") from None
    return dtype, shape, file.tell()
