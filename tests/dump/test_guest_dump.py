"""The proof: a dump of a running Linux 6.1 gives what the kernel itself said at that moment."""

import lzma

import numpy as np
import pytest
from guest import CR3, SIZE, guest, write_image
from recorded import large_sets
from table_images import elf_core, lime

import gpuhmm
from gpuhmm.dump import address_space, find_roots, find_zero_pages, load_tables, release_of
from gpuhmm.image import open_image


@pytest.fixture(scope="module")
def record():
    """Return what the kernel said."""
    return guest()


@pytest.fixture(scope="module")
def image(record, tmp_path_factory):
    """Return a sparse image with the page-table pages of the dump."""
    return write_image(record, tmp_path_factory.mktemp("guest") / "memory.raw")


def held_to_the_record(record, source, backends=("cpu",)):
    """Check all entries and all words of a walk from CR3."""
    tables = load_tables(source, CR3)
    assert not len(tables.faults)
    made = address_space(
        tables, record.vmas, zero_pfn=record.zero_pfn, huge_zero_pfn=record.huge_zero_pfn, kernel="v6.1"
    )
    assert made.unknown == 0
    wrong = [(va, level) for va, level, value in record.entries if made.space.entry(va, level) != value]
    assert len(record.entries) == 36_066
    assert not wrong
    assert len(record.hmm_pfns) == 113_170
    for backend in backends:
        seen = gpuhmm.range_fault(made.space, record.start, record.end, backend=backend)
        assert np.array_equal(seen.hmm_pfns, record.hmm_pfns)


def test_every_entry_and_every_word(record, image):
    held_to_the_record(record, image, ("reference", "cpu"))


@pytest.mark.parametrize("form", [elf_core, lime], ids=["elf", "lime"])
def test_the_same_out_of_a_dump_with_holes(record, form, tmp_path):
    """As QEMU and LiME write it: the page of each table in a piece of its own."""
    order = np.argsort(record.table_pfns)
    pieces = [(int(record.table_pfns[i]) << 12, record.tables[i].astype("<u8").tobytes()) for i in order]
    path = tmp_path / "dump"
    path.write_bytes(form(pieces, [CR3]) if form is elf_core else form(pieces))
    held_to_the_record(record, path)
    if form is elf_core:
        with open_image(path) as opened:
            assert load_tables(opened).root_pfn == CR3 >> 12


def test_the_unpacked_memory(record, tmp_path):
    packed = large_sets() / "guest-dump" / "guest_phys_256M.bin.xz"
    if not packed.exists():
        pytest.skip("GPUHMM_VECTORS has no guest-dump/guest_phys_256M.bin.xz")
    path = tmp_path / "memory.raw"
    with lzma.open(packed) as source, open(path, "wb") as target:
        while chunk := source.read(1 << 24):
            target.write(chunk)
    assert path.stat().st_size == SIZE
    held_to_the_record(record, path)
    roots = find_roots(path)
    assert CR3 in roots["cr3"]
    assert len(roots) < 32
    with open_image(path) as opened:
        tables = load_tables(opened, CR3)
        assert release_of(opened, tables) == ("6.1.192-hmmcap", "banner of its image")
        found = find_zero_pages(tables, opened)
    assert found == (record.zero_pfn, record.huge_zero_pfn)


def test_cr3_is_found_by_a_scan(image):
    roots = find_roots(image)
    (found,) = roots[roots["cr3"] == CR3]
    assert found.tolist() == (CR3, 4, 4, 68, 0)


def test_without_vmas_the_same_pages_are_valid(record, image):
    with open_image(image) as opened:
        tables = load_tables(opened, CR3)
        zero_pfn, huge_zero_pfn = find_zero_pages(tables, opened)
    assert (zero_pfn, huge_zero_pfn) == (record.zero_pfn, record.huge_zero_pfn)
    made = address_space(tables, zero_pfn=zero_pfn, huge_zero_pfn=huge_zero_pfn)
    assert made.derived
    assert "no VMAs were given" in made.notes[0]
    seen = gpuhmm.range_fault(made.space, record.start, record.end, backend="cpu")
    valid = (record.hmm_pfns & gpuhmm.HMM_PFN_VALID) != 0
    assert np.array_equal(seen.valid, valid)
    assert np.array_equal(seen.hmm_pfns[valid], record.hmm_pfns[valid])
