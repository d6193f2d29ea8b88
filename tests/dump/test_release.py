"""The release of the machine whose memory we have: by the banner of its kernel, and what is walked by it."""

import pytest
from table_images import LEAF, TableImage, elf_core

from gpuhmm.dump import load_tables, read_dump, release_of
from gpuhmm.image import ReaderSource, open_image
from gpuhmm.mm.profile import PROFILES, kernel_profile

BASE = 0x7F00_0000_0000
IMAGE = 0xFFFF_FFFF_8000_0000
#: init/version-timestamp.c:linux_banner of Debian 13.
BANNER = (
    b"Linux version %s (debian-kernel@lists.debian.org) (x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0, "
    b"GNU ld (GNU Binutils for Debian) 2.44) #1 SMP PREEMPT_DYNAMIC Debian 6.12.118-1 (2026-11-02)\n\0"
)


def machine(banners=(), mapped=()):
    """Return memory of 64 pages; ``banners`` are (address, release), ``mapped`` PFNs of its image."""
    image = TableImage(64)
    image.set(BASE, 1, 5 << 12 | LEAF)
    for i, pfn in enumerate(mapped):
        image.set(IMAGE + (1 << 24) + (i << 12), 1, pfn << 12 | 0x121 | 1 << 63)
    memory = bytearray(image.bytes())
    for at, release in banners:
        text = BANNER % release
        memory[at : at + len(text)] = text
    return image.cr3, bytes(memory)


def saved(tmp_path, *args):
    cr3, memory = machine(*args)
    (tmp_path / "memory.raw").write_bytes(memory)
    return cr3, tmp_path / "memory.raw"


def test_the_banner_of_the_mapped_image_counts_before_others(tmp_path):
    # Physically the first is of another kernel: a log, say.
    cr3, path = saved(tmp_path, [(30 << 12, b"5.10.0"), (40 << 12, b"6.12.118+deb13-amd64")], [50, 40])
    capture = read_dump(path, cr3)
    assert capture.space.kernel is PROFILES["v6.12"]
    assert capture.walked_as == (
        "walked as v6.12 does: Linux 6.12.118+deb13-amd64 (banner of its image); DEVICE_PRIVATE, MIGRATION "
        "and MEMORY_FAILURE are assumed, as its config is not known"
    )


@pytest.mark.parametrize("chunk", [1, 4096])
def test_a_banner_may_reach_over_pages_that_lie_apart(monkeypatch, chunk):
    monkeypatch.setattr("gpuhmm.dump.release._CHUNK_PAGES", chunk)
    memory = bytearray(machine([((40 << 12) - 40, b"6.17.13")])[1])
    # The page behind page 39 by address is page 44: move the rest of the banner there.
    memory[44 << 12 : 45 << 12] = memory[40 << 12 : 41 << 12]
    memory[40 << 12 : 41 << 12] = bytes(4096)
    source = ReaderSource(lambda at, size: bytes(memory[at : at + size]))
    image = TableImage(64)
    for i, pfn in enumerate((39, 44)):
        image.set(IMAGE + (i << 12), 1, pfn << 12 | 0x121)
    image.set(BASE, 1, 5 << 12 | LEAF)
    tables_end = image.next << 12
    memory[:tables_end] = image.bytes()[:tables_end]
    assert release_of(source, load_tables(source, image.cr3)) == ("6.17.13", "banner of its image")


@pytest.mark.parametrize(
    ("vmcoreinfo", "release"),
    [
        (b"OSRELEASE=6.17.0-41-generic\nBUILD-ID=1\nPAGESIZE=4096\n", "6.17.0-41-generic"),
        (b"PAGESIZE=4096\nOSRELEASE=7.3.4\n", "7.3.4"),
        (b"PAGESIZE=4096\nXOSRELEASE=7.3.4\nOSRELEASE=\n", "6.12.118"),
        (b"OSRELEASE=linux\n", "6.12.118"),
        (None, "6.12.118"),
    ],
)
def test_vmcoreinfo_of_a_core_counts_before_a_banner(tmp_path, vmcoreinfo, release):
    cr3, memory = machine([(30 << 12, b"6.12.118")], [30])
    (tmp_path / "core").write_bytes(elf_core([(0, memory)], [cr3], vmcoreinfo=vmcoreinfo))
    with open_image(tmp_path / "core") as opened:
        assert opened.cr3s == (cr3,)
        where = "first banner in memory" if release == "6.12.118" else "OSRELEASE of VMCOREINFO"
        assert release_of(opened) == (release, where)
    assert f"Linux {release} (" in read_dump(tmp_path / "core").walked_as


def test_without_the_image_the_first_banner_in_memory_counts(tmp_path):
    cr3, path = saved(tmp_path, [(30 << 12, b"6.18.44-fc-v657"), (40 << 12, b"6.1.192")])
    with open_image(path) as memory:
        assert release_of(memory) == ("6.18.44-fc-v657", "first banner in memory")
        assert release_of(memory, load_tables(memory, cr3)) == release_of(memory)
    assert read_dump(path, cr3).space.kernel is PROFILES["v6.18"]


@pytest.mark.parametrize(
    "text",
    [
        b"Linux version 6.1.0 (a@b) (gcc) #1\nnext line",  # a log
        b"Linux version %s (%s) %s\n\0",  # linux_proc_banner
        b"Linux version 6.1.0-nothing-else\n\0",
    ],
)
def test_what_only_looks_like_a_banner(text):
    cr3, memory = machine()
    memory = memory[: 60 << 12] + text + memory[(60 << 12) + len(text) :]
    source = ReaderSource(lambda at, size: memory[at : at + size])
    assert release_of(source, load_tables(source, cr3)) is None


def test_where_nothing_says_a_release_one_is_assumed_and_said(tmp_path):
    cr3, path = saved(tmp_path)
    capture = read_dump(path, cr3)
    assert capture.space.kernel is PROFILES["v6.1"]
    assert "nothing says which kernel it is, v6.1 is assumed" in capture.walked_as


def test_a_kernel_that_is_given_is_not_looked_for():
    cr3, memory = machine([(30 << 12, b"6.12.118")], [30])
    read = []
    source = ReaderSource(lambda at, size: read.append(at) or memory[at : at + size])
    capture = read_dump(source, cr3, kernel="v7.0:no-memory-failure", zero_pfn=1, huge_zero_pfn=512)
    assert capture.space.kernel == kernel_profile("v7.0:no-memory-failure")
    assert capture.walked_as == "walked as v7.0 without MEMORY_FAILURE does: as asked for"
    assert 30 << 12 not in read


def test_zero_pages_are_told_by_the_devmap_bit_of_the_kernel(tmp_path):
    # Two pages of zeros that are special: with bit 57, devmap in v6.12, it is no zero page; in v6.17 it is.
    image = TableImage(64)
    for i in range(3):
        image.set(BASE + (i << 12), 1, 50 << 12 | 0x225 | 1 << 57)
    image.set(BASE + (8 << 12), 1, 51 << 12 | 0x225)
    (tmp_path / "memory").write_bytes(image.bytes())
    found = {
        kernel: read_dump(tmp_path / "memory", image.cr3, kernel=kernel).space.zero_pfn
        for kernel in ("v6.1", "v6.12", "v6.17")
    }
    assert found == {"v6.1": 50, "v6.12": 51, "v6.17": 50}


def test_a_huge_zero_page_is_told_likewise():
    image = TableImage(2048)
    image.set(BASE, 2, 512 << 12 | 0xA5 | 1 << 57)
    image.set(BASE + (1 << 21), 2, 512 << 12 | 0xA5 | 1 << 57)
    image.set(BASE + (2 << 21), 2, 1024 << 12 | 0xA5)
    data = image.bytes()
    source = ReaderSource(lambda at, size: data[at : at + size])
    assert read_dump(source, image.cr3, kernel="v6.12").space.huge_zero_pfn == 1024
    assert read_dump(source, image.cr3, kernel="v6.17").space.huge_zero_pfn == 512
