"""Pages that move to other frames: between start and end, migration entries stand in the page tables.

Source: mm/migrate.c:migrate_pages, unmap_and_move, remove_migration_ptes; mm/rmap.c:try_to_migrate_one
(v6.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from errno import EINVAL
from typing import TYPE_CHECKING, NamedTuple

from gpuhmm.memory.fault.migration import is_migration_type, migration_entry, remove_migration_pte
from gpuhmm.memory.mmap import invalid_range
from gpuhmm.memory.pages.page import GUP_PIN_COUNTING_BIAS, PG_ANON, PG_ANON_EXCLUSIVE, PG_FILE
from gpuhmm.memory.pages.rmap import (
    huge_normal_page,
    page_add_rmap,
    page_remove_rmap,
    rmap_walk,
    vm_normal_page,
)
from gpuhmm.memory.pmd_range import split_to_ptes, walk_pmd_range
from gpuhmm.mm.entry import NONE, PMD_SIZE, PROTNONE, PSE, P, huge_pfn_of, pfn_of, swp_pfn, swp_type_of
from gpuhmm.mm.mmap_lock import write_locked

if TYPE_CHECKING:
    from gpuhmm.memory.pages.physical import PhysicalMemory
    from gpuhmm.memory.space import AddressSpace


class Move(NamedTuple):
    """One entry of a page under migration, at ``va``; ``pfn`` is where it goes, None if it stays."""

    mm: AddressSpace
    va: int
    level: int
    pfn: int | None


@dataclass
class Migration:
    """Pages under migration: :meth:`end` puts them back, all at once."""

    memory: PhysicalMemory
    moves: list[Move]
    ended: bool = False
    #: Where each page goes: PFN -> PFN; of both a reference is held until the end.
    destinations: dict[int, int] = field(default_factory=dict)

    def covers(self, mm: AddressSpace, va: int, pfn: int) -> bool:
        """True if the page at ``va`` of ``mm``, which was ``pfn``, is one of those that move."""
        return pfn in self.destinations or any(
            move.mm is mm and move.va <= va < move.va + (4096 if move.level == 1 else PMD_SIZE)
            for move in self.moves
        )

    def end(self) -> int:
        """Put present entries in place of all migration entries; return how many pages moved.

        ValueError if that was done already.
        """
        if self.ended:
            raise ValueError("a migration must be ended once")
        self.ended = True
        self.memory.migrations.remove(self)
        moved = set()
        for mm, va, level, pfn in [*self.moves, *self._inherited()]:
            entry = mm.entry(va, level)
            vma = mm.vmas.lookup(va)
            there = entry & ~NONE and not entry & (P | PROTNONE | PSE)
            if vma is None or not there or not is_migration_type(mm, swp_type_of(entry)):
                continue  # unmapped meanwhile
            old = swp_pfn(mm, entry)
            if pfn is not None and self.destinations.get(old) != pfn:
                continue  # unmapped, filled again, and by now under another migration
            if pfn is not None:
                moved.add(pfn)
            remove_migration_pte(mm, vma, va, level, pfn)
            target = old if pfn is None else pfn
            if self.memory.pages.refcount(target):
                if swp_type_of(entry) == mm.kernel.swp_migration_read:
                    # Shared since, by a fork; the entry is what remembers.
                    self.memory.pages.set_flags(target, 0, PG_ANON_EXCLUSIVE)
                self.memory.pages.get(target)
                page_add_rmap(self.memory, target, 9 if level == 2 else 0)
        for old, new in self.destinations.items():
            self._settle(old, new)
        return len(moved)

    def _inherited(self) -> list[Move]:
        """Return the migration entries that children have copied since, found by the reverse map."""
        known = {(id(move.mm), move.va) for move in self.moves}
        found = []
        for new in self.destinations.values():
            level = 2 if self.memory.pages.page(new).order else 1
            for mm, _, va in rmap_walk(self.memory, new):
                if (id(mm), va) not in known:
                    found.append(Move(mm, va, level, new))
        return found

    def _settle(self, old: int, new: int) -> None:
        """Let the frame that a page left go."""
        pages = self.memory.pages
        for pfn in (old, new):
            self.memory.put_page(pfn)
        assert pages.mapcount(old) == 0


@write_locked
def migrate_pages_start(mm: AddressSpace, start: int, end: int) -> Migration | int:
    """Begin to move the pages of ``[start, end)`` to other frames; -EINVAL for a range that cannot be.

    Every entry that maps one of them, in whatever space, becomes a migration entry: event CLEAR over it.
    Pinned pages, zero pages, hugetlb pages and pages without descriptor stay.
    """
    if invalid_range(mm, start, end):
        return -EINVAL
    migration = Migration(mm.memory, [])
    for vma in [vma for vma in mm.vmas.overlapping(start, end) if not vma.is_hugetlb]:
        for part in walk_pmd_range(mm, max(start, vma.start), min(end, vma.end)):
            if not part.is_table:
                if not part.pmd & (P | PROTNONE):
                    continue
                if part.is_whole:
                    pfn = huge_normal_page(mm, vma, part.va, part.pmd)
                    if pfn is not None:
                        _unmap(migration, pfn, 9)
                    continue
                if not split_to_ptes(mm, vma, part.va):
                    continue
            for va in part.ptes:
                pte = mm.entry(va, 1)
                page = vm_normal_page(mm, vma, va, pte) if pte & (P | PROTNONE) else None
                if page is not None:
                    if mm.memory.pages.page(page).order:
                        continue  # mapped in part: Linux splits it first, or leaves it
                    _unmap(migration, page, 0)
    if migration.moves:
        mm.memory.migrations.append(migration)
    else:
        migration.ended = True
    return migration


def migrate_pages_end(migration: Migration) -> int:
    """End a migration; return how many pages moved.  ValueError if it was ended already."""
    if migration.ended:
        return migration.end() if migration.moves else 0
    lock = migration.moves[0].mm.mmap_lock
    with lock.write():
        return migration.end()


def _unmap(migration: Migration, pfn: int, order: int) -> None:
    """Replace every entry of a page by a migration entry (try_to_migrate), and find it another frame."""
    memory = migration.memory
    page = memory.pages.page(pfn)
    if pfn in migration.destinations or page.refcount >= GUP_PIN_COUNTING_BIAS:
        return
    places = [(mm, va) for mm, _, va in rmap_walk(memory, pfn) if _maps(mm, va, pfn, order)]
    held = len(places) + (page.refcount - page.mapcount if page.flags & PG_FILE else 0)
    if page.refcount != held or not places:
        return  # somebody else holds it: migrate_page_move_mapping would find too many references
    new = memory.alloc_page(order)
    if new is None:
        return
    memory.pages.get(pfn)
    level = 2 if order else 1
    size = PMD_SIZE if order else 4096
    for mm, va in places:
        with mm.subscriptions.invalidate_range(va, va + size):
            entry = mm.entry(va, level)
            exclusive = bool(memory.pages.flags(pfn) & PG_ANON_EXCLUSIVE)
            mm.page_tables.set_entry(va, level, migration_entry(mm, entry, pfn, exclusive=exclusive))
            page_remove_rmap(memory, pfn, order)
            memory.put_page(pfn)
        migration.moves.append(Move(mm, va, level, new))
    migration.destinations[pfn] = new
    _copy(memory, pfn, new, order)


def _copy(memory: PhysicalMemory, old: int, new: int, order: int) -> None:
    """Let a page's content, place and kind be those of another; a page cache then holds the new one."""
    pages = memory.pages
    for i in range(1 << order):
        page = pages.page(old + i)
        pages.set_content(new + i, page.content)
        pages.set_place(new + i, page.mapping, page.index)
        pages.set_flags(new + i, page.flags & (PG_ANON | PG_ANON_EXCLUSIVE | PG_FILE))
        if page.flags & PG_FILE and page.mapping:
            memory.file(page.mapping).replace(page.index, new + i)
            pages.get(new)
            memory.put_page(old)
            pages.set_flags(old + i, 0, PG_FILE)


def _maps(mm: AddressSpace, va: int, pfn: int, order: int) -> bool:
    entry = mm.entry(va, 2 if order else 1)
    if not entry & (P | PROTNONE):
        return False
    if order:
        return bool(entry & PSE) and huge_pfn_of(entry) == pfn
    return pfn_of(entry) == pfn
