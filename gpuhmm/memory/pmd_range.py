"""The entries of a range as what changes them meets them: 2 MiB at a time, empty ones left out.

Source: mm/pagewalk.c:walk_pmd_range (v6.1), and the loops over PMDs of mm/memory.c, mm/mprotect.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from gpuhmm.memory.fault.huge import split_huge_pmd
from gpuhmm.memory.fault.vm_fault import Fault
from gpuhmm.mm.entry import PMD_SIZE, is_none
from gpuhmm.mm.tables import NO_CHILD
from gpuhmm.mm.vma import Vma
from gpuhmm.mm.x86 import level_shift

if TYPE_CHECKING:
    from gpuhmm.memory.space import AddressSpace


class PmdPart(NamedTuple):
    """The part ``[va, past)`` of a range that one PMD covers, which is not none."""

    va: int
    past: int
    pmd: int
    #: Row of the leaf table behind it; NO_CHILD for a huge entry and for one that is not present.
    row: int

    @property
    def is_table(self) -> bool:
        """True if PTEs stand below it."""
        return self.row != NO_CHILD

    @property
    def is_whole(self) -> bool:
        """True if the range holds all of its 2 MiB, so that a huge entry need not be split."""
        return self.past - self.va == PMD_SIZE

    @property
    def ptes(self) -> range:
        """The addresses of the PTEs in the range."""
        return range(self.va, self.past, 4096)


def walk_pmd_range(mm: AddressSpace, start: int, end: int) -> Iterator[PmdPart]:
    """Yield the parts of ``[start, end)`` whose PMD is not none; each is looked at when its turn comes."""
    tables, va = mm.page_tables, start
    while va < end:
        level = tables.lowest(va)
        shift = level_shift(max(level, 2))
        past = min(((va >> shift) + 1) << shift, end)
        if level <= 2:
            pmd = tables.entry(va, 2)
            if not is_none(pmd):
                yield PmdPart(va, past, pmd, tables.row(va, 1))
        va = past


def split_to_ptes(mm: AddressSpace, vma: Vma, va: int) -> bool:
    """Split the huge entry over ``va``; True if PTEs stand there now.

    They do not where memory ran out, and in a mapping of a file, which is unmapped instead.
    """
    return split_huge_pmd(Fault(mm, vma, va, 0)) and mm.page_tables.row(va, 1) != NO_CHILD
