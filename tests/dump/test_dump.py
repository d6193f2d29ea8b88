"""Page tables out of images: what is missing, shared or wild is counted, and never ends in a crash."""

import contextlib
import os
import random

import numpy as np
import pytest
from table_images import (
    LEAF,
    PROTNONE,
    PSE,
    TABLE,
    TableImage,
    elf_core,
    expanded,
    lime,
    loaded,
    random_image,
)

import gpuhmm
from gpuhmm.dump import (
    FAULT_MISSING,
    FAULT_RESERVED,
    address_space,
    areas_of,
    load_tables,
    processor_roots,
    read_dump,
    read_maps,
)
from gpuhmm.errors import ImageError
from gpuhmm.image import ReaderSource, open_image
from gpuhmm.mm.vma import VM_EXEC, VM_HUGETLB, VM_READ, VM_WRITE
from gpuhmm.process import summarize
from gpuhmm.translation import mappings, translate

BASE = 0x7F00_0000_0000
MIB2 = 1 << 21
GIB = 1 << 30


def small_image():
    """Return an image in which four tables map two pages."""
    image = TableImage(16)
    image.set(BASE, 1, 5 << 12 | LEAF)
    image.set(BASE + 4096, 1, 6 << 12 | LEAF)
    return image


def walked(space, start, end):
    """Return the words of a snapshot, on which all back ends agree."""
    seen = [
        gpuhmm.range_fault(space, start, end, backend=backend).hmm_pfns for backend in ("reference", "cpu")
    ]
    assert np.array_equal(*seen)
    return seen[0]


def test_only_the_tables_are_read():
    image = TableImage(64)
    for i in range(20):
        image.set(BASE + i * MIB2, 1, 5 << 12 | LEAF)
    data = image.bytes()
    source = ReaderSource(lambda at, size: data[at : at + size])
    assert load_tables(source, image.cr3).nr_tables == source.reads - 0 == 23


def test_flags_in_cr3_are_no_address():
    image = small_image()
    data = image.bytes()
    source = ReaderSource(lambda at, size: data[at : at + size])
    assert load_tables(source, image.cr3 | 0xABC | 1 << 63).root_pfn == image.root


def test_processors_share_a_table_or_never_ran(tmp_path):
    image = small_image()
    path = tmp_path / "core"
    # PCIDs differ, and the processor that was never started has CR3 0.
    path.write_bytes(elf_core([(0, image.bytes())], [0, image.cr3 | 1, image.cr3 | 0x805 | 1 << 63]))
    with open_image(path) as opened:
        assert processor_roots(opened) == [image.cr3]
        assert load_tables(opened).root_pfn == image.root
        with pytest.raises(ValueError, match="never ran"):
            load_tables(opened, 0x17)


def test_missing_tables_are_faults_with_their_place():
    image = small_image()
    image.set(BASE + 3 * MIB2, 2, 0xFFFFF << 12 | TABLE)
    image.set(1 << 47, 4, 0x12345 << 12 | TABLE)
    tables = loaded(image)
    faults = tables.faults[np.argsort(tables.faults["level"])]
    assert faults["kind"].tolist() == [FAULT_MISSING] * 2
    assert faults["level"].tolist() == [2, 4]
    assert faults["va"].tolist() == [BASE + 3 * MIB2, 0xFFFF_8000_0000_0000]
    assert faults["entry"].tolist() == [0xFFFFF << 12 | TABLE, 0x12345 << 12 | TABLE]
    assert tables.upper[faults["row"][0], faults["slot"][0]] == faults["entry"][0]


@pytest.mark.parametrize("level", [2, 3, 4])
@pytest.mark.parametrize("kernel", ["v5.18", "v6.1"])
def test_what_lies_behind_a_missing_table_is_error(level, kernel):
    image = small_image()
    va = BASE + (1 << 12 + 9 * (level - 1))
    image.set(va, level, 0xFFFFF << 12 | TABLE)
    made = address_space(
        loaded(image), [gpuhmm.Vma(BASE, va + 4 * MIB2, VM_READ | VM_WRITE)], kernel=kernel, zero_pfn=0
    )
    assert made.unknown == 1
    words = walked(made.space, va, va + MIB2)
    assert (words == gpuhmm.HMM_PFN_ERROR).all()
    assert walked(made.space, BASE, BASE + 8192).tolist() == [0xC000_0000_0000_0005, 0xC000_0000_0000_0006]
    with pytest.raises(gpuhmm.HmmFaultError):
        gpuhmm.range_fault(made.space, va, va + 4096, request="read", backend="cpu")
    # Hugetlb areas look at the upper entries themselves: nothing valid there either.
    if level == 2:
        area = gpuhmm.Vma(va, va + MIB2, VM_READ | VM_HUGETLB, 21)
        made = address_space(loaded(image), [area], kernel=kernel)
        assert not (walked(made.space, va, va + MIB2) & gpuhmm.HMM_PFN_VALID).any()


def test_five_levels_with_missing_tables():
    image = TableImage(16, levels=5)
    image.set(BASE, 1, 5 << 12 | LEAF)
    image.set(1 << 50, 5, 0xFFFFF << 12 | TABLE)
    made = address_space(loaded(image), [gpuhmm.Vma(BASE, (1 << 50) + GIB, VM_READ)])
    assert made.unknown == 1
    assert (walked(made.space, 1 << 50, (1 << 50) + MIB2) == gpuhmm.HMM_PFN_ERROR).all()


def test_a_table_at_two_levels_keeps_its_highest():
    image = small_image()
    image.data[1, 7] = 1 << 12 | TABLE  # the top table maps itself
    tables = loaded(image)
    assert len(tables.faults) == 0
    made = address_space(tables, [gpuhmm.Vma(7 << 39, (7 << 39) + MIB2, VM_READ)])
    assert made.unknown == 1
    assert (walked(made.space, 7 << 39, (7 << 39) + MIB2) == gpuhmm.HMM_PFN_ERROR).all()
    assert made.space.entry(BASE, 1) == 5 << 12 | LEAF & (1 << 64) - 1


def test_tables_shared_at_one_level_are_walked_as_one():
    image = small_image()
    image.set(BASE + MIB2, 2, int(image.data[image.table(BASE, 2), BASE >> 21 & 511]))
    made = address_space(loaded(image), [gpuhmm.Vma(BASE, BASE + 2 * MIB2, VM_READ)])
    assert made.unknown == 0
    words = walked(made.space, BASE, BASE + 2 * MIB2)
    assert words[512:514].tolist() == words[:2].tolist()


def test_tables_that_map_everything_over_and_over_are_refused():
    image = TableImage(8)
    for pfn in (1, 2, 3):
        image.data[pfn, :] = pfn + 1 << 12 | TABLE
    image.data[4, :] = (7 << 12) | LEAF
    with pytest.raises(ValueError, match="point to each other"):
        areas_of(loaded(image))
    made = address_space(loaded(image), [gpuhmm.Vma(BASE, BASE + 2 * MIB2, VM_READ)])
    assert (walked(made.space, BASE, BASE + MIB2) & 7 == 7).all()


def test_reserved_bits_are_faults():
    image = small_image()
    image.data[1, 9] = 3 << 12 | TABLE | PSE
    # Bits 13 to 20 of a 2 MiB entry and 13 to 29 of a 1 GiB one (SDM volume 3, tables 4-16 and 4-18).
    wrong = [(BASE + MIB2, 2, 1 << 13), (BASE + 2 * MIB2, 2, 1 << 20), (BASE + 4 * GIB, 3, 1 << 29)]
    right = [(BASE + 3 * MIB2, 2, 1 << 12), (BASE + 4 * MIB2, 2, 1 << 21), (BASE + 5 * GIB, 3, 1 << 30)]
    for va, level, bit in wrong + right:
        image.set(va, level, 1 << 36 | bit | LEAF | PSE)
    tables = loaded(image)
    assert sorted(tables.faults["va"].tolist()) == sorted([9 << 39, *(va for va, _, _ in wrong)])
    assert (tables.faults["kind"] == FAULT_RESERVED).all()
    vas = np.array([9 << 39, *(va for va, _, _ in wrong + right)], dtype=np.uint64)
    for backend in ("reference", "cpu"):
        seen = translate(tables, vas, backend=backend)
        assert seen.reasons.tolist() == [5] * 4 + [0] * 3
        assert seen.physical[4:].tolist() == [1 << 36, 1 << 36 | 1 << 21, 1 << 36 | 1 << 30]
    # Runs pass over what hardware refuses.
    large = mappings(tables, BASE + MIB2, BASE + 6 * GIB)
    assert large["va"].tolist() == [BASE + 3 * MIB2, BASE + 5 * GIB]
    assert large["npages"].tolist() == [1024, 1 << 18]  # the first two go on in each other


@pytest.mark.parametrize(
    ("cr3", "message"),
    [
        (1 << 40, "does not hold"),
        (9 << 12, "no entry is present"),
        (4 << 12, "leads to no other table"),
        (None, "must be given"),
        (-1, "64 bits"),
        (1 << 64, "64 bits"),
    ],
)
def test_a_wrong_cr3_is_said_to_be_wrong(cr3, message):
    image = small_image()
    image.data[4] = np.where(image.data[4] != 0, np.uint64(0xFFFFF000 | TABLE), image.data[4])
    data = image.bytes()
    with pytest.raises(ValueError, match=message):
        load_tables(ReaderSource(lambda at, size: data[at : at + size]), cr3)


def test_memory_that_makes_up_tables_without_end_is_stopped():
    rng = np.random.default_rng(1)

    def endless(address, size):
        return (
            (rng.integers(0, 1 << 40, 512, dtype=np.uint64) << np.uint64(12)) | np.uint64(TABLE)
        ).tobytes()

    with pytest.raises(ImageError, match="more than 5000 page tables"):
        load_tables(ReaderSource(endless), 0x1000, max_tables=5000)


def test_a_shadow_that_is_mapped_a_million_times():
    """As KASAN maps it: 16 TiB through one table of each level, which is read once; runs have a limit."""
    image = small_image()
    pud, pmd, pte = range(image.next, image.next + 3)
    image.data[pte] = 7 << 12 | 0x161 | 1 << 63
    image.data[pmd] = pte << 12 | TABLE
    image.data[pud] = pmd << 12 | TABLE
    image.data[1, 0x1D8:0x1F8] = pud << 12 | TABLE  # from 0xffffec0000000000 on
    tables = loaded(image)
    assert tables.nr_tables == 4 + 3
    vas = np.array([BASE, 0xFFFF_ED00_1234_5000, 0xFFFF_FBFF_FFFF_F000], dtype=np.uint64)
    assert translate(tables, vas).physical.tolist() == [5 << 12, 7 << 12, 7 << 12]
    with pytest.raises(ValueError, match="max_runs = 16777216"):
        mappings(tables)
    with pytest.raises(ValueError, match="more than 1000 tables"):
        mappings(tables, max_tables=1000)
    assert len(mappings(tables, 0, 1 << 47)) == 1
    assert [vma.start for vma in areas_of(tables)] == [BASE]


def test_areas_from_entries():
    image = TableImage()
    for i, value in enumerate(
        [1 << 12 | 0x865 | 1 << 63, 2 << 12 | LEAF, 3 << 12 | 0x865, 29 << 59 | 4 << 20]
    ):
        image.set(BASE + i * 4096, 1, value)
    for i in range(5, 8):
        image.set(BASE + i * 4096, 1, ~(9 << 12) & 0x000F_FFFF_FFFF_F000 | 0x20 | PROTNONE)
    image.set(BASE + 8 * 4096, 1, 0x20)  # accessed only: none
    image.set(BASE + 511 * 4096, 1, 4 << 12 | LEAF)
    image.set(BASE + MIB2, 2, 5 << 21 | LEAF | PSE)
    image.set(BASE + 2 * MIB2, 2, 29 << 59 | 4 << 20)
    image.set(BASE + 4 * GIB, 3, 1 << 30 | LEAF | PSE)
    image.set((1 << 64) - 4096, 1, 6 << 12 | LEAF)
    found = [(vma.start - BASE, vma.end - BASE, vma.flags, vma.page_shift) for vma in areas_of(loaded(image))]
    assert found == [
        (0, 4 * 4096, VM_READ | VM_WRITE | VM_EXEC, 12),
        (5 * 4096, 8 * 4096, 0, 12),
        (511 * 4096, 3 * MIB2, VM_READ | VM_WRITE, 12),
        (4 * GIB, 5 * GIB, VM_READ | VM_WRITE | VM_HUGETLB, 30),
    ]


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_every_mapped_user_page_is_valid_without_vmas(seed, levels):
    tables = loaded(random_image(random.Random(seed), levels))
    made = address_space(tables)
    runs = mappings(tables, 0, 1 << (11 + 9 * levels))
    vas, pas, which = expanded(runs)
    accessible = (runs["flags"][which] & 8) == 0
    special = 0x200
    for vma in made.space.vmas:
        inside = (vas >= vma.start) & (vas < vma.end) & accessible
        if (vma.end - vma.start) >> 12 > 1 << 12:
            continue
        seen = gpuhmm.range_fault(made.space, vma.start, vma.end, backend="cpu")
        at = ((vas[inside] - np.uint64(vma.start)) >> 12).astype(int)
        assert np.array_equal(seen.pfns[at], pas[inside] >> 12)
        assert seen.valid.sum() == len(at)
    assert special


def test_maps_files(tmp_path):
    (tmp_path / "maps").write_text(
        f"{BASE:x}-{BASE + 8192:x} rw-p 00000000 00:00 0 \n"
        f"{BASE + 8192:x}-{BASE + 12288:x} r--s 00001000 08:01 77   /a file\n"
        "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n"
    )
    found = read_maps(tmp_path / "maps")
    assert [(m.start, m.end, m.perms, m.name) for m in found] == [
        (BASE, BASE + 8192, "rw-p", ""),
        (BASE + 8192, BASE + 12288, "r--s", "/a file"),
    ]
    (tmp_path / "memory").write_bytes(small_image().bytes())
    capture = read_dump(tmp_path / "memory", 1 << 12, maps=tmp_path / "maps")
    assert capture.mappings == found
    assert capture.resident == [2, 0]
    assert capture.notes[-1].startswith("no zero page")
    with pytest.raises(ValueError, match="must hold mappings"):
        read_maps(tmp_path / "memory")
    with pytest.raises(ValueError, match="both"):
        read_dump(tmp_path / "memory", 1 << 12, maps=tmp_path / "maps", vmas=[])
    with pytest.raises(ValueError, match="no mapping in"):
        read_dump(tmp_path / "memory", 1 << 12, vmas=[])


FORMS = {
    "raw": lambda data: data,
    "elf": lambda data: elf_core(
        [(0, data[: len(data) // 2]), (len(data) // 2, data[len(data) // 2 :])], [4096]
    ),
    "lime": lambda data: lime([(0, data[: len(data) // 2]), (len(data) // 2, data[len(data) // 2 :])]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", [4, 5])
def test_fuzzed_images_give_an_error_or_an_answer(form, levels, tmp_path):
    """Bytes are changed, tables crossed and the end cut off: every image is refused, or walked alike."""
    rng = random.Random(f"{form}{levels}")
    refused = answered = 0
    for _ in range(25):
        image = random_image(rng, levels, pages=48, tables=8)
        for _ in range(rng.randrange(6)):
            page, slot = rng.randrange(1, image.next), rng.randrange(512)
            image.data[page, slot] = rng.choice(
                [
                    rng.randrange(1 << 64),
                    rng.randrange(48) << 12 | TABLE,
                    int(image.data[page, slot]) ^ 1 << rng.randrange(64),
                ]
            )
        data = bytearray(FORMS[form](image.bytes()))
        for _ in range(rng.choice([0, 0, 1, 30])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if not rng.randrange(3):
            del data[rng.randrange(len(data)) :]
        path = tmp_path / "image"
        path.write_bytes(data)
        try:
            capture = read_dump(path, image.cr3, levels=levels)
        except ValueError:
            refused += 1
            continue
        answered += 1
        with open_image(path) as opened:
            tables = load_tables(opened, image.cr3, levels=levels)
        vas = np.array([rng.randrange(1 << 64) for _ in range(50)], dtype=np.uint64)
        if len(capture.windows):
            vas[:25] = np.uint64(int(capture.windows[0]) << 21) + (
                np.arange(25, dtype=np.uint64) << np.uint64(14)
            )
        seen = [translate(tables, vas, backend=backend).words for backend in ("reference", "cpu")]
        assert np.array_equal(*seen)
        with contextlib.suppress(ValueError):
            mappings(tables, 0, 1 << 40, max_tables=1 << 12)
        with contextlib.suppress(gpuhmm.HmmError):
            summarize(capture, backend="cpu")
        for window in capture.windows[:3].tolist():
            start, end = max(window << 21, capture.start), min(window + 1 << 21, capture.end)
            if start < end:
                walked(capture.space, start, end)
    assert answered > 5
    assert refused + answered == 25


def test_an_image_that_shrinks_between_the_tables():
    """A reader whose memory goes away while the tables are read: what is gone is missing."""
    data = random_image(random.Random(3)).bytes()
    reads = 0

    def shrinking(address, size):
        nonlocal reads
        reads += 1
        if reads > 8:
            raise OSError("gone")
        return data[address : address + size]

    tables = load_tables(ReaderSource(shrinking), 1 << 12)
    assert tables.fault_counts()["table missing from the image"] > 0


def test_a_file_is_closed_with_its_image(tmp_path):
    (tmp_path / "memory").write_bytes(small_image().bytes())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        read_dump(tmp_path / "memory", 1 << 12)
    assert len(os.listdir("/proc/self/fd")) == before
