"""Translation of a live process against the kernel's own word for each page, 2 MiB pages among them."""

import numpy as np
import pytest
from known_process import PAGE, known_process, needs_pfns, pagemap_word, pfn, pool_of_huge_pages, present

from gpuhmm.process import read_process, stopped
from gpuhmm.snapshot import load_snapshot, save_snapshot
from gpuhmm.translation import mappings, translate_range


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """Return a child with known memory, its capture, and the space of a snapshot of that."""
    folder = tmp_path_factory.mktemp("child")
    with pool_of_huge_pages(2) as pool, known_process(folder, pool) as child, stopped(child.pid):
        capture = read_process(child.pid)
        save_snapshot(folder / "saved", capture)
        yield child, capture, load_snapshot(folder / "saved").space


@needs_pfns
def test_every_page_is_where_the_kernel_says(live):
    child, capture, saved = live
    for name, (start, end) in child.areas.items():
        end = min(end, start + (4 << 20))  # some areas are reserves of many TiB
        words = [pagemap_word(child.pid, va) for va in range(start, end, PAGE)]
        for source in (capture, saved):
            result = translate_range(source, start, len(words), backend="cpu")
            assert result.mapped.tolist() == [present(word) for word in words], name
            found = (result.physical[result.mapped] >> 12).tolist()
            assert found == [pfn(word) for word in words if present(word)], name


@needs_pfns
@pytest.mark.parametrize("name", ["thp", "hugetlb"])
def test_huge_pages_are_leaves_of_level_2(live, name):
    child, capture, saved = live
    if name not in child.areas:
        pytest.skip("no hugetlb pages can be had (/proc/sys/vm/nr_hugepages)")
    start, end = child.areas[name]
    for source in (capture, saved):
        result = translate_range(source, start, (end - start) >> 12, backend="cpu")
        if name == "thp" and not (result.levels[result.mapped] == 2).any():
            pytest.skip("the kernel gave no transparent huge page")
        assert (result.levels[result.mapped] == 2).all()
        runs = mappings(source, start, end, backend="cpu")
        assert runs["npages"].min() >= 512
        assert not (runs["pa"] & np.uint64((2 << 20) - 1)).any()
