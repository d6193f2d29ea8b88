"""Bits of entries that differ between machines and kernels: AMD's encryption bit, and upright PFNs."""

import numpy as np
import pytest
from table_images import ADDRESS, LEAF, PROTNONE, PSE, TABLE, TableImage, map_kernel

from gpuhmm.dump import find_roots, load_tables, read_dump
from gpuhmm.errors import ImageError
from gpuhmm.image import open_image
from gpuhmm.translation import translate

BASE = 0x7F00_0000_0000
MIB2 = 1 << 21
#: A swap entry of type 2 as arch/x86/include/asm/pgtable_64.h:__swp_entry makes it (v6.1): inverted offset.
SWAPPED = 2 << 59 | (~0x1234 & (1 << 50) - 1) << 9


def encrypted(bit):
    """Return an image whose present entries and CR3 all have ``bit``, as Linux writes them with SME."""
    image = TableImage(64)
    map_kernel(image)
    image.set(BASE, 1, 6 << 12 | LEAF)
    image.set(BASE + 4096, 1, SWAPPED)
    # pfn_pte (v6.1): the PFN is inverted, the encryption bit is a flag and is not.
    image.set(BASE + 8192, 1, (~(9 << 12) & ADDRESS) | 1 << bit | 0x20 | PROTNONE)
    image.set(BASE + MIB2, 2, 3 << 21 | LEAF | PSE)
    present = (image.data & np.uint64(1)) != 0
    image.data[present] |= np.uint64(1 << bit)
    return image


@pytest.mark.parametrize("bit", [47, 51])
def test_the_encryption_bit_is_no_address(bit, tmp_path):
    image = encrypted(bit)
    (tmp_path / "memory").write_bytes(image.bytes())
    with open_image(tmp_path / "memory", sme_mask=1 << bit) as memory:
        assert find_roots(memory)["cr3"].tolist() == [image.cr3]
        tables = load_tables(memory, image.cr3 | 1 << bit)
    vas = np.array([BASE, BASE + 4096, BASE + 8192, BASE + MIB2 + 5], dtype=np.uint64)
    seen = translate(tables, vas)
    assert seen.reasons.tolist() == [0, 3, 1, 0]
    assert seen.physical.tolist() == [6 << 12, 0, 9 << 12, (3 << 21) + 5]
    assert (tables.leaf == np.uint64(SWAPPED)).sum() == 1


@pytest.mark.parametrize("cr3", [1 << 12, 1 << 12 | 1 << 47])
def test_an_encryption_bit_that_nobody_told_is_named(cr3, tmp_path):
    (tmp_path / "memory").write_bytes(encrypted(47).bytes())
    with pytest.raises(ImageError, match="--sme-mask 0x800000000000"):
        load_tables(tmp_path / "memory", cr3)


def test_prot_none_before_it_was_inverted(tmp_path):
    """Linux before 4.18.1 (commit 6b28baca9b1f) stores the PFN of a PROT_NONE entry as it is."""
    image = TableImage(2048)
    map_kernel(image)
    image.set(BASE, 1, 6 << 12 | LEAF)
    image.set(BASE + 4096, 1, 9 << 12 | 0x20 | PROTNONE)
    image.set(BASE + 8192, 1, SWAPPED)
    image.set(BASE + MIB2, 2, 3 << 21 | 0x20 | PROTNONE | PSE)
    (tmp_path / "memory").write_bytes(image.bytes())
    vas = np.array([BASE, BASE + 4096, BASE + 8192, BASE + MIB2], dtype=np.uint64)
    with open_image(tmp_path / "memory", upright_protnone=True) as memory:
        seen = translate(load_tables(memory, image.cr3), vas)
        notes = read_dump(memory, image.cr3).notes
    assert seen.reasons.tolist() == [0, 1, 3, 1]
    assert seen.physical.tolist() == [6 << 12, 9 << 12, 0, 3 << 21]
    assert not any("--upright-protnone" in note for note in notes)
    # Whoever does not know it is told.
    notes = read_dump(tmp_path / "memory", image.cr3).notes
    assert any(note.startswith("1 PROT_NONE") and "--upright-protnone" in note for note in notes)


def test_tables_that_are_not_present_are_left_alone(tmp_path):
    """An upper entry without PSE is no PROT_NONE page, whatever its other bits are."""
    image = TableImage(16)
    image.set(BASE, 1, 6 << 12 | LEAF)
    image.set(BASE + MIB2, 2, 5 << 12 | PROTNONE | TABLE & ~1)
    (tmp_path / "memory").write_bytes(image.bytes())
    with open_image(tmp_path / "memory", upright_protnone=True) as memory:
        tables = load_tables(memory, image.cr3)
    assert (tables.upper == np.uint64(5 << 12 | PROTNONE | TABLE & ~1)).sum() == 1
