"""Faults in mappings of files: read, copy-on-write and shared faults, and fault-around.

Source: mm/memory.c:do_fault, do_read_fault, do_cow_fault, do_shared_fault, do_fault_around, finish_fault,
do_set_pmd; mm/filemap.c:filemap_map_pages, filemap_fault; mm/shmem.c:shmem_fault (v6.1).
"""

from __future__ import annotations

from gpuhmm.memory.fault import dax
from gpuhmm.memory.fault.vm_fault import Fault
from gpuhmm.memory.pages.page import PG_HWPOISON
from gpuhmm.memory.pages.rmap import page_add_new_anon_rmap, page_add_rmap
from gpuhmm.mm.entry import DIRTY, PMD_SIZE, PSE, UFFD_WP, A, is_none, mk_pte, wrprotect
from gpuhmm.mm.handler import (
    VM_FAULT_DONE_COW,
    VM_FAULT_ERROR,
    VM_FAULT_FALLBACK,
    VM_FAULT_HWPOISON,
    VM_FAULT_LOCKED,
    VM_FAULT_MAJOR,
    VM_FAULT_NOPAGE,
    VM_FAULT_OOM,
    VM_FAULT_SIGBUS,
)
from gpuhmm.mm.tables import NO_CHILD
from gpuhmm.mm.vma import VM_SHARED, VM_UFFD_MISSING, VM_UFFD_WP

#: Pages that one read fault maps at most: 64 KiB (fault_around_bytes).
FAULT_AROUND_PAGES = 16


def do_fault(vmf: Fault, orig_pte: int) -> int:
    """Serve a fault at an empty entry, or a marker, of a mapping with vm_ops."""
    assert vmf.vma.file is not None
    if not vmf.write:
        return do_read_fault(vmf, orig_pte)
    if not vmf.vma.flags & VM_SHARED:
        return do_cow_fault(vmf)
    return do_shared_fault(vmf, orig_pte)


def do_read_fault(vmf: Fault, orig_pte: int) -> int:
    """Map what is in the page cache around the address, else the page itself."""
    file = vmf.vma.file
    assert file is not None
    if file.kind.map_pages and not vmf.vma.flags & VM_UFFD_WP:
        ret = do_fault_around(vmf)
        if ret:
            return ret
    ret, pfn = get_page(vmf)
    if ret & (VM_FAULT_ERROR | VM_FAULT_NOPAGE):
        return ret
    return ret | finish_fault(vmf, pfn, orig_pte)


def do_cow_fault(vmf: Fault) -> int:
    """Map a private copy of the page."""
    if not vmf.alloc_tables(2):
        return VM_FAULT_OOM
    copy = vmf.memory.alloc_page()
    if copy is None:
        return VM_FAULT_OOM
    ret, pfn = get_page(vmf, copy)
    if ret & (VM_FAULT_ERROR | VM_FAULT_NOPAGE):
        vmf.memory.put_page(copy)
        return ret
    if ret & VM_FAULT_DONE_COW:
        return ret
    vmf.memory.pages.set_content(copy, vmf.memory.pages.content(pfn))
    if not vmf.alloc_tables(1):
        vmf.memory.put_page(copy)
        return VM_FAULT_OOM
    page_add_new_anon_rmap(vmf.memory, copy, vmf.index)
    vmf.store(1, vmf.maybe_mkwrite(mk_pte(copy, vmf.prot) | A | DIRTY))
    return ret


def do_shared_fault(vmf: Fault, orig_pte: int) -> int:
    """Map the page of the file writable and dirty, after its file system agreed (page_mkwrite)."""
    ret, pfn = get_page(vmf)
    if ret & (VM_FAULT_ERROR | VM_FAULT_NOPAGE):
        return ret
    return ret | finish_fault(vmf, pfn, orig_pte)


def get_page(vmf: Fault, cow: int | None = None) -> tuple[int, int]:
    """Return VM_FAULT_* bits and the PFN of the file's page at the address (__do_fault).

    The page is found in the page cache or brought there; ``cow`` is the page to copy to, if any.
    """
    vma, memory = vmf.vma, vmf.memory
    file = vma.file
    assert file is not None
    index = vmf.index
    if index >= file.npages:
        return VM_FAULT_SIGBUS, 0
    if file.kind.dax:
        return dax.dax_iomap_pte_fault(vmf, cow)
    pfn = file.lookup(index)
    if pfn is not None:
        if memory.pages.flags(pfn) & PG_HWPOISON:
            return VM_FAULT_HWPOISON, 0
        return VM_FAULT_LOCKED, pfn
    if not file.kind.in_memory:
        if not file.read_around(index):
            return VM_FAULT_OOM, 0
        pfn = file.lookup(index)
        assert pfn is not None
        return VM_FAULT_LOCKED | VM_FAULT_MAJOR, pfn
    return _shmem_get_folio(vmf)


def _shmem_get_folio(vmf: Fault) -> tuple[int, int]:
    """Fill a hole of a file in memory, or bring its page back from swap."""
    memory, file, index = vmf.memory, vmf.vma.file, vmf.index
    assert file is not None
    slot = file.slot(index)
    if slot is not None:
        cached = memory.swap.cached(slot)
        pfn = memory.alloc_page() if cached is None else cached
        if pfn is None:
            return VM_FAULT_OOM, 0
        if cached is None:
            memory.pages.set_content(pfn, memory.swap.content(slot))
        file.set_slot(index, None)
        file.insert(index, pfn)
        memory.swap.free(slot)
        if cached is None:
            memory.put_page(pfn)
        else:
            memory.delete_from_swap_cache(slot, pfn)
        return VM_FAULT_LOCKED | (VM_FAULT_MAJOR if cached is None else 0), pfn
    if vmf.vma.flags & VM_UFFD_MISSING:
        return VM_FAULT_SIGBUS, 0
    if file.huge:
        first = index & -512
        if first + 512 <= file.npages and all(file.lookup(first + i) is None for i in range(512)):
            head = memory.alloc_page(9)
            if head is not None:
                file.insert(first, head, 9)
                memory.put_page(head)
                return VM_FAULT_LOCKED, head + index - first
    pfn = memory.alloc_page()
    if pfn is None:
        return VM_FAULT_OOM, 0
    file.insert(index, pfn)
    memory.put_page(pfn)
    return VM_FAULT_LOCKED, pfn


def finish_fault(vmf: Fault, pfn: int, orig_pte: int) -> int:
    """Map a page of the page cache: with a huge entry if it is part of a huge page that fits."""
    if is_none(vmf.entry(2)):
        ret = do_set_pmd(vmf, pfn)
        if not ret & VM_FAULT_FALLBACK:
            return ret
    if not vmf.alloc_tables(1):
        return VM_FAULT_OOM
    _do_set_pte(vmf, vmf.va, pfn, bool(orig_pte))
    return 0


def _do_set_pte(vmf: Fault, va: int, pfn: int, uffd_wp: bool) -> None:
    entry = mk_pte(pfn, vmf.prot)
    if vmf.write:
        entry = vmf.maybe_mkwrite(entry | A | DIRTY)
    if uffd_wp:
        entry = wrprotect(vmf.mm.kernel, entry | UFFD_WP)
    vmf.memory.pages.get(pfn)
    page_add_rmap(vmf.memory, pfn)
    vmf.tables.set_entry(va, 1, entry)


def do_set_pmd(vmf: Fault, pfn: int) -> int:
    """Map a huge page of the page cache with one entry; VM_FAULT_FALLBACK where that does not fit."""
    pages = vmf.memory.pages
    if pages.page(pfn).order != 9 or not transhuge_vma_suitable(vmf):
        return VM_FAULT_FALLBACK
    if not vmf.alloc_tables(2):
        return VM_FAULT_OOM
    head = pages.head(pfn)
    entry = mk_pte(head, vmf.prot) | PSE
    if vmf.write:
        entry = vmf.maybe_mkwrite(entry | A | DIRTY)
    pages.get(head)
    page_add_rmap(vmf.memory, head, 9)
    vmf.store(2, entry)
    return 0


def transhuge_vma_suitable(vmf: Fault) -> bool:
    """True if the area spans the 2 MiB around the address, aligned as the file is."""
    vma = vmf.vma
    if not vma.is_anonymous and ((vma.start >> 12) - vma.pgoff) % 512:
        return False
    first = vmf.va & -PMD_SIZE
    return vma.start <= first and first + PMD_SIZE <= vma.end


def do_fault_around(vmf: Fault) -> int:
    """Map up to 16 pages that are in the page cache; VM_FAULT_NOPAGE if the address is among them."""
    vma, va = vmf.vma, vmf.va
    file = vma.file
    assert file is not None
    first = max(va & -(FAULT_AROUND_PAGES << 12), vma.start, va & -PMD_SIZE)
    last = min(first + (FAULT_AROUND_PAGES << 12), (va & -PMD_SIZE) + PMD_SIZE, vma.end)
    if not vmf.alloc_tables(2):
        return 0
    found = [(at, file.lookup(vma.index(at))) for at in range(first, last, 4096)]
    if all(pfn is None for _, pfn in found):
        return 0
    if is_none(vmf.entry(2)):
        if _map_pmd(vmf, next(pfn for _, pfn in found if pfn is not None)):
            return VM_FAULT_NOPAGE
        if not vmf.alloc_tables(1):
            return 0
    elif vmf.tables.row(va, 1) == NO_CHILD:
        return VM_FAULT_NOPAGE  # somebody mapped a huge page meanwhile
    return _map_pages(vmf, found)


def _map_pmd(vmf: Fault, pfn: int) -> bool:
    """filemap_map_pmd: a huge page of the page cache is mapped with one entry."""
    return do_set_pmd(vmf, pfn) == 0


def _map_pages(vmf: Fault, found: list[tuple[int, int | None]]) -> int:
    file = vmf.vma.file
    assert file is not None
    row = vmf.tables.row(vmf.va, 1)
    ret = 0
    for at, pfn in found:
        if pfn is None or vmf.vma.index(at) >= file.npages:
            continue
        if vmf.memory.pages.flags(pfn) & PG_HWPOISON:
            continue
        if not is_none(int(vmf.tables.leaf[row, at >> 12 & 511])):
            continue
        _do_set_pte(vmf, at, pfn, False)
        if at == vmf.va:
            ret = VM_FAULT_NOPAGE
    return ret
