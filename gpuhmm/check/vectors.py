"""Files of recorded cases: NumPy archives of one row of scalars a case, and ragged arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpuhmm.check.case import Case, Outcome
from gpuhmm.mm.profile import PROFILES, kernel_profile
from gpuhmm.mm.tables import Words
from gpuhmm.results.partial_file import whole_file

#: Ragged arrays and their columns (0: one value a row); rows offsets[i] to offsets[i + 1] are case i's.
_RAGGED = {
    "vmas": 4,
    "table_pfns": 0,
    "table_entries": 3,
    "hmm_pfns_in": 0,
    "hmm_pfns_out": 0,
    "events": 5,
    "writes": 3,
}

_SCALARS = np.dtype(
    [
        ("category", "<u4"),
        ("levels", "<u4"),
        ("start", "<u8"),
        ("end", "<u8"),
        ("default_flags", "<u8"),
        ("pfn_flags_mask", "<u8"),
        ("dev_private_owner", "<u8"),
        ("invalidate_after", "<i8"),
        ("highest_memmap_pfn", "<u8"),
        ("ret", "<i8"),
        ("walks", "<u8"),
    ]
)


@dataclass(frozen=True)
class VectorFile:
    """One opened file; iterate over it for its cases."""

    path: Path
    arrays: dict[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.arrays["cases"])

    def __getitem__(self, index: int) -> Case:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} cases (got index {index})")
        arrays = self.arrays
        row = arrays["cases"][index]
        scalars = {name: int(row[name]) for name in row.dtype.names}
        ragged = {name: self._rows(name, index) for name in _RAGGED}
        recorded = Outcome(
            ret=scalars["ret"],
            walks=scalars["walks"],
            hmm_pfns=ragged["hmm_pfns_out"],
            events=ragged["events"],
            writes=ragged["writes"],
        )
        return Case(
            name=f"{self.path.name}[{index}] ({arrays['categories'][scalars['category']]})",
            kernel=str(arrays["abi"]),
            levels=scalars["levels"],
            start=scalars["start"],
            end=scalars["end"],
            default_flags=scalars["default_flags"],
            pfn_flags_mask=scalars["pfn_flags_mask"],
            dev_private_owner=scalars["dev_private_owner"],
            invalidate_after=scalars["invalidate_after"],
            zero_pfn=int(arrays["zero_pfn"]),
            huge_zero_pfn=int(arrays["huge_zero_pfn"]),
            highest_memmap_pfn=scalars.get("highest_memmap_pfn", int(arrays["highest_memmap_pfn"])),
            device_owners=arrays["device_owners"],
            vmas=ragged["vmas"],
            table_pfns=ragged["table_pfns"],
            table_entries=ragged["table_entries"],
            hmm_pfns_in=ragged["hmm_pfns_in"],
            shstk=bool(arrays.get("shstk", 0)),  # only where some cases have it
            fault_seed=index,
            recorded=recorded,
        )

    def __iter__(self) -> Iterator[Case]:
        return (self[index] for index in range(len(self)))

    def _rows(self, name: str, index: int) -> Words:
        first, last = self.arrays[f"{name}_offsets"][index : index + 2].tolist()
        return self.arrays[name][first:last]


def load(path: Path) -> VectorFile:
    """Open a file of cases.  ValueError if it is none, or is damaged."""
    names = ["cases", "categories", "abi", "zero_pfn", "huge_zero_pfn", "highest_memmap_pfn", "device_owners"]
    names += [*_RAGGED, *(f"{name}_offsets" for name in _RAGGED)]
    arrays = read_archive(path)
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"{path} must hold recorded cases (it lacks {', '.join(missing)})")
    _check(path, arrays)
    return VectorFile(path, arrays)


def read_archive(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return every array of an ``.npz`` file.  ValueError if it is none, or is damaged."""
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return {name: archive[name] for name in archive}
    except (zipfile.BadZipFile, EOFError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a whole .npz file of arrays ({error})") from None


def save(path: Path, cases: Sequence[Case]) -> None:
    """Write recorded cases of one kernel into one file, next to the target first, then renamed.

    ValueError for cases without a record and for cases that share no kernel, zero PFN, owners or ``shstk``.
    """
    if not cases:
        raise ValueError("a file of cases must hold at least one")
    first = cases[0]
    for case in cases:
        if case.recorded is None:
            raise ValueError(f"{case.name} has no recorded outcome")
        common = (case.kernel, case.zero_pfn, case.huge_zero_pfn, case.shstk)
        if common != (first.kernel, first.zero_pfn, first.huge_zero_pfn, first.shstk) or not np.array_equal(
            case.device_owners, first.device_owners
        ):
            raise ValueError(
                f"{case.name} must share kernel, zero PFNs, device owners and shstk with {first.name}"
            )
    arrays: dict[str, Any] = {
        "abi": kernel_profile(first.kernel).name,
        "zero_pfn": np.uint64(first.zero_pfn),
        "huge_zero_pfn": np.uint64(first.huge_zero_pfn),
        "highest_memmap_pfn": np.uint64(first.highest_memmap_pfn),
        "device_owners": first.device_owners,
        "shstk": np.uint64(first.shstk),
        "categories": np.array([case.name for case in cases]),
        "cases": np.array([_scalars(i, case) for i, case in enumerate(cases)], dtype=_SCALARS),
    }
    for name in _RAGGED:
        rows = [_ragged(case, name) for case in cases]
        arrays[name] = np.concatenate(rows)
        arrays[f"{name}_offsets"] = np.cumsum([0, *(len(part) for part in rows)])
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _scalars(category: int, case: Case) -> tuple[int, ...]:
    assert case.recorded is not None
    return (
        category,
        case.levels,
        case.start,
        case.end,
        case.default_flags,
        case.pfn_flags_mask,
        case.dev_private_owner,
        case.invalidate_after,
        case.highest_memmap_pfn,
        case.recorded.ret,
        case.recorded.walks,
    )


def _ragged(case: Case, name: str) -> Words:
    assert case.recorded is not None
    recorded = {
        "hmm_pfns_out": case.recorded.hmm_pfns,
        "events": case.recorded.events,
        "writes": case.recorded.writes,
    }
    rows: Words = recorded[name] if name in recorded else getattr(case, name)
    return rows


def _check(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    count = len(arrays["cases"])
    if str(arrays["abi"]) not in PROFILES:
        raise ValueError(f"{path}: abi must be one of {', '.join(PROFILES)} (got {arrays['abi']})")
    for name, columns in _RAGGED.items():
        rows, offsets = arrays[name], arrays[f"{name}_offsets"]
        shape = (len(rows), columns) if columns else (len(rows),)
        if rows.dtype != np.uint64 or rows.shape != shape:
            raise ValueError(
                f"{path}: {name} must be uint64 of shape {shape} (got {rows.dtype}, {rows.shape})"
            )
        if (
            len(offsets) != count + 1
            or offsets[0] != 0
            or offsets[-1] != len(rows)
            or (np.diff(offsets) < 0).any()
        ):
            raise ValueError(f"{path}: {name}_offsets must rise from 0 to {len(rows)} in {count + 1} steps")
