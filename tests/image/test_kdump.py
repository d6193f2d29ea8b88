"""Compressed kdumps, plain and flattened, read through drgn; written here from the facts of the format."""

import os
import random

import numpy as np
import pytest
from kdumps import flattened, kdump
from table_images import LEAF, TableImage, map_kernel

from gpuhmm.dump import find_roots, load_tables, release_of
from gpuhmm.errors import ImageError
from gpuhmm.image import open_image
from gpuhmm.translation import translate

pytest.importorskip("drgn", reason="drgn is not installed")

#: 500 were run by hand.
COUNT = int(os.environ.get("GPUHMM_MUTATIONS", "12"))
BASE = 0x7F00_0000_0000
VMCOREINFO = (
    b"OSRELEASE=6.12.1\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff82a1b9e0\nKERNELOFFSET=0\n"
    b"SYMBOL(swapper_pg_dir)=ffffffff82a10000\nNUMBER(phys_base)=0\nNUMBER(KERNEL_IMAGE_SIZE)=1073741824\n"
    b"NUMBER(pgtable_l5_enabled)=1\nNUMBER(sme_mask)=0\n"
)


@pytest.fixture
def image():
    made = TableImage(600, levels=5, root=300)
    map_kernel(made)
    made.set(BASE, 1, 6 << 12 | LEAF)
    return made


def packed(image):
    """Return a kdump that lacks every page of zeros, as makedumpfile -d 1 writes it."""
    pages = {pfn: page.tobytes() for pfn, page in enumerate(image.data) if page.any()}
    return kdump(pages, len(image.data), VMCOREINFO)


@pytest.mark.parametrize("form", [bytes, flattened], ids=["kdump", "flattened"])
def test_a_compressed_kdump(form, image, tmp_path):
    (tmp_path / "dump").write_bytes(form(packed(image)))
    with open_image(tmp_path / "dump") as memory:
        assert memory.describe()["format"] == "kdump"
        assert memory.describe()["end"] == 600 * 4096
        assert memory.levels == 5
        assert release_of(memory) == ("6.12.1", "OSRELEASE of VMCOREINFO")
        seen = [first + i for first, pages in memory.scan() for i in range(len(pages))]
        assert seen == np.flatnonzero(image.data.any(axis=1)).tolist()
        assert find_roots(memory).tolist() == [(300 << 12, 5, 1, 1, 0)]
        tables = load_tables(memory, image.cr3)
    assert translate(tables, np.array([BASE], dtype=np.uint64)).physical.tolist() == [6 << 12]


@pytest.mark.parametrize("vmcoreinfo", [VMCOREINFO, b""], ids=["said", "silent"])
def test_what_qemu_writes(vmcoreinfo, image, tmp_path):
    """No names of the kernel, headers in pieces, and without -device vmcoreinfo no VMCOREINFO either."""
    pages = {pfn: page.tobytes() for pfn, page in enumerate(image.data)}
    (tmp_path / "dump").write_bytes(flattened(kdump(pages, len(pages), vmcoreinfo, qemu=True), 464))
    with open_image(tmp_path / "dump") as memory:
        assert memory.describe()["end"] == 600 * 4096
        assert memory.levels == (5 if vmcoreinfo else None)
        assert find_roots(memory).tolist() == [(300 << 12, 5, 1, 1, 0)]
        assert memory.read(300 << 12, 4096) == pages[300]


def test_what_drgn_does_not_read_is_said(image, tmp_path):
    (tmp_path / "dump").write_bytes(kdump({1: bytes(4096)}, 2, b"PAGESIZE=4096\n"))
    with pytest.raises(ImageError, match=r"drgn does not read.*OSRELEASE"):
        open_image(tmp_path / "dump")
    (tmp_path / "dump").write_bytes(kdump({1: bytes(4096)}, 2, VMCOREINFO, machine=b"aarch64"))
    with pytest.raises(ImageError, match=r"must be of x86_64.*'aarch64'"):
        open_image(tmp_path / "dump")
    broken = bytearray(packed(image))
    broken[4096 + 96 : 4096 + 104] = (1 << 40).to_bytes(8, "little")  # max_mapnr_64
    (tmp_path / "dump").write_bytes(broken)
    with pytest.raises(ImageError, match="kdump"):
        open_image(tmp_path / "dump")


def test_bytes_that_were_changed_give_an_error_or_an_answer(image, tmp_path):
    data, rng = packed(image), random.Random(5)
    refused = 0
    for _ in range(COUNT):
        changed = bytearray(data)
        for _ in range(rng.randrange(1, 20)):
            changed[rng.randrange(rng.choice([8192, len(changed)]))] = rng.randrange(256)
        (tmp_path / "dump").write_bytes(changed)
        try:
            with open_image(tmp_path / "dump") as memory:
                find_roots(memory)
                load_tables(memory, image.cr3)
        except ValueError:
            refused += 1
    assert 0 < refused < COUNT


def test_a_dump_on_which_the_library_dies(image, tmp_path):
    """libkdumpfile maps the file, so that one that shrinks kills the process: that is not ours."""
    path = tmp_path / "dump"
    path.write_bytes(packed(image))
    with open_image(path) as memory:
        os.truncate(path, 4096)
        with pytest.raises(ImageError, match="does not read"):
            find_roots(memory)
