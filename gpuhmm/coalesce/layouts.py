"""Ways to fill an area before anything is measured: what its pages are when a device first touches them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuhmm.memory import fork
from gpuhmm.memory.fault.burst import handle_mm_fault_range
from gpuhmm.memory.pages.filemap import File
from gpuhmm.mm.handler import FAULT_FLAG_WRITE
from gpuhmm.mm.vma import VM_HUGEPAGE, VM_READ, VM_SHARED, VM_WRITE

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace

_RW = VM_READ | VM_WRITE

#: Maps and fills ``[start, end)`` bytes of a space; its faults are those of the fault model.
Fill = Callable[["AddressSpace", int, int], None]


def _untouched(mm: AddressSpace, start: int, end: int) -> None:
    mm.mmap(start, end, _RW)


def _untouched_huge(mm: AddressSpace, start: int, end: int) -> None:
    mm.mmap(start, end, _RW | VM_HUGEPAGE)


def _zero(mm: AddressSpace, start: int, end: int) -> None:
    _untouched(mm, start, end)
    _fault_all(mm, start, end, 0)


def _zero_huge(mm: AddressSpace, start: int, end: int) -> None:
    _untouched_huge(mm, start, end)
    _fault_all(mm, start, end, 0)


def _written(mm: AddressSpace, start: int, end: int) -> None:
    _untouched(mm, start, end)
    _fault_all(mm, start, end, FAULT_FLAG_WRITE)


def _written_huge(mm: AddressSpace, start: int, end: int) -> None:
    _untouched_huge(mm, start, end)
    _fault_all(mm, start, end, FAULT_FLAG_WRITE)


def _forked(mm: AddressSpace, start: int, end: int) -> None:
    _written(mm, start, end)
    fork(mm)


def _forked_huge(mm: AddressSpace, start: int, end: int) -> None:
    _written_huge(mm, start, end)
    fork(mm)


def _file(mm: AddressSpace, start: int, end: int, flags: int) -> None:
    mm.mmap(start, end, flags, file=File(mm.memory, end - start, "regular"))
    _fault_all(mm, start, end, 0)


def _private_file(mm: AddressSpace, start: int, end: int) -> None:
    _file(mm, start, end, _RW)


def _shared_file(mm: AddressSpace, start: int, end: int) -> None:
    _file(mm, start, end, _RW | VM_SHARED)


def _fault_all(mm: AddressSpace, start: int, end: int, flags: int) -> None:
    vma = mm.vmas.lookup(start)
    assert vma is not None
    with mm.mmap_lock.write():
        handle_mm_fault_range(mm, vma, start, end, flags)


@dataclass(frozen=True)
class Layout:
    """One way to fill an area: how, and in words."""

    fill: Fill
    words: str


LAYOUTS = {
    "untouched": Layout(_untouched, "anonymous memory that nobody touched"),
    "untouched-huge": Layout(_untouched_huge, "the same, with MADV_HUGEPAGE"),
    "zero": Layout(_zero, "anonymous memory that was read only: the zero page everywhere"),
    "zero-huge": Layout(_zero_huge, "the same, with MADV_HUGEPAGE: the huge zero page"),
    "written": Layout(_written, "anonymous memory that was written"),
    "written-huge": Layout(_written_huge, "the same, with MADV_HUGEPAGE"),
    "forked": Layout(_forked, "written, and shared with a child since: copy on write"),
    "forked-huge": Layout(_forked_huge, "huge pages shared with a child: copy on write, after a split"),
    "private-file": Layout(
        _private_file, "a writable private mapping of a file in the page cache, only read so far"
    ),
    "shared-file": Layout(
        _shared_file, "a writable shared mapping of a file in the page cache, only read so far"
    ),
}


def layout_named(name: str) -> Layout:
    """Return a layout.  ValueError for a name that is none."""
    if name not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)} (got {name!r})")
    return LAYOUTS[name]
