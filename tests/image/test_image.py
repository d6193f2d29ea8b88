"""Images of physical memory: every format gives the same pages, and what is missing is missing."""

import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from table_images import elf_core, lime

import gpuhmm.image
from gpuhmm.errors import ImageError, MissingMemoryError
from gpuhmm.image import ReaderSource, Segment, as_source, open_image
from gpuhmm.image.known import KNOWN

PAGE = 4096


@pytest.fixture
def memory():
    """Return 64 pages of random bytes."""
    return np.random.default_rng(7).bytes(64 * PAGE)


def pieces(memory):
    """Return memory with a hole from page 20 to 24, cut off a page border in page 10, and from page 50 on."""
    return [
        (0, memory[: 10 * PAGE + 100]),
        (10 * PAGE + 100, memory[10 * PAGE + 100 : 20 * PAGE]),
        (24 * PAGE, memory[24 * PAGE : 50 * PAGE]),
    ]


def write(tmp_path, data):
    path = tmp_path / "image"
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("form", [elf_core, lime], ids=["elf", "lime"])
def test_pages_of_an_image_with_holes(form, memory, tmp_path):
    with open_image(write(tmp_path, form(pieces(memory)))) as image:
        pfns = np.random.default_rng(1).permutation(60).astype(np.uint64)
        pages, there = image.read_pages(pfns)
        expected = np.array([pfn < 20 or 24 <= pfn < 50 for pfn in pfns])
        assert (there == expected).all()
        for pfn, page, is_there in zip(pfns.tolist(), pages, there, strict=True):
            assert page.tobytes() == (memory[pfn * PAGE : (pfn + 1) * PAGE] if is_there else bytes(PAGE))
        assert image.read(9 * PAGE + 5, 3 * PAGE) == memory[9 * PAGE + 5 : 12 * PAGE + 5]
        for address, size in [(20 * PAGE - 1, 2), (21 * PAGE, 1), (50 * PAGE - 1, 2), (1 << 51, 8)]:
            with pytest.raises(MissingMemoryError):
                image.read(address, size)
        inside = image.contains(
            np.array([0, 20 * PAGE - 1, 20 * PAGE, 24 * PAGE, 50 * PAGE], dtype=np.uint64)
        )
        assert inside.tolist() == [True, True, False, True, False]


def test_a_scan_gives_every_whole_page_once(memory, tmp_path):
    with open_image(write(tmp_path, lime(pieces(memory)))) as image:
        seen = {}
        for first, pages in image.scan():
            seen.update({first + i: page.tobytes() for i, page in enumerate(pages)})
    # Page 10 lies in two segments: no scan sees it, a read does.
    assert sorted(seen) == [*range(10), *range(11, 20), *range(24, 50)]
    assert all(content == memory[pfn * PAGE : (pfn + 1) * PAGE] for pfn, content in seen.items())


def test_a_sparse_image_is_scanned_where_it_holds_something(memory, tmp_path):
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(memory[: 4 * PAGE])
    with open_image(path) as image:
        seen = [(first + i, page.any()) for first, pages in image.scan() for i, page in enumerate(pages)]
        assert [pfn for pfn, any_set in seen if any_set] == [(1 << 27) + i for i in range(4)]
        assert len(seen) < 1 << 12
        assert image.read(1 << 39, 16) == memory[:16]
        assert image.read(0, 8) == bytes(8)


def test_a_file_that_is_cut_while_it_is_open_gives_missing_pages(memory, tmp_path):
    path = write(tmp_path, memory)
    with open_image(path) as image:
        os.truncate(path, 10 * PAGE + 7)
        pages, there = image.read_pages(np.arange(64, dtype=np.uint64))
        assert there.tolist() == [True] * 10 + [False] * 54
        assert not pages[10:].any()
        with pytest.raises(MissingMemoryError, match="ends before"):
            image.read(11 * PAGE, 8)
        assert sum(len(found) for _, found in image.scan()) == 10


def test_truncated_images_say_what_is_missing(memory, tmp_path):
    data = elf_core([(0, memory)])
    with open_image(write(tmp_path, data[: -5 * PAGE])) as image:
        assert image.truncated == 5 * PAGE
        assert "lacks 20480 bytes" in image.describe()["notes"][0]
        assert image.read_pages(np.array([58, 59], dtype=np.uint64))[1].tolist() == [True, False]
    data = lime([(0, memory)])
    with open_image(write(tmp_path, data[:-PAGE])) as image:
        assert image.truncated == PAGE


def test_registers_in_the_notes_of_qemu(memory, tmp_path):
    with open_image(
        write(tmp_path, elf_core([(0, memory)], cr3s=[0x3000, 0x3000, 0x5000], la57=True))
    ) as image:
        assert image.cr3s == (0x3000, 0x5000)
        assert image.levels == 5
    with open_image(write(tmp_path, elf_core([(0, memory)]))) as image:
        assert image.cr3s == ()
        assert image.levels is None


def test_memory_beyond_the_bytes_of_a_segment_is_zeros(memory, tmp_path):
    """System V ABI, chapter 5: the bytes of p_memsz that p_filesz lacks hold 0."""
    data = elf_core([(0, memory[: 10 * PAGE + 100])], memory_beyond=5 * PAGE)
    with open_image(write(tmp_path, data)) as image:
        assert image.size == 15 * PAGE + 100
        pages, there = image.read_pages(np.array([14, 10, 15, 9], dtype=np.uint64))
        assert there.tolist() == [True, True, False, True]
        assert pages[1].tobytes() == memory[10 * PAGE : 10 * PAGE + 100] + bytes(PAGE - 100)
        assert not pages[0].any()
        assert pages[3].tobytes() == memory[9 * PAGE : 10 * PAGE]
        assert image.read(10 * PAGE + 90, 20) == memory[10 * PAGE + 90 : 10 * PAGE + 100] + bytes(10)
        # A scan is for what may hold anything but zeros.
        assert sum(len(found) for _, found in image.scan()) == 10
    # What a truncated file lacks is missing, and no zeros.
    with open_image(write(tmp_path, data[: -2 * PAGE])) as image:
        assert image.truncated == 2 * PAGE
        assert image.read_pages(np.array([7, 8, 9, 13], dtype=np.uint64))[1].tolist() == [
            True,
            False,
            False,
            True,
        ]


def test_a_segment_without_a_place_in_the_file_is_left_out(memory, tmp_path):
    """QEMU gives memory that a filter left out the offset -1 (dump.c:get_offset_range)."""
    data = bytearray(elf_core([(0, memory), (1 << 30, b"")], memory_beyond=0))
    struct.pack_into("<Q", data, 64 + 2 * 56 + 8, (1 << 64) - 1)
    struct.pack_into("<Q", data, 64 + 2 * 56 + 40, PAGE)
    with open_image(write(tmp_path, bytes(data))) as image:
        assert image.size == len(memory)
        assert "1 segments" in image.describe()["notes"][0]


def test_what_the_kernel_says_of_itself(memory, tmp_path):
    text = (
        b"OSRELEASE=6.12.117+deb13-amd64\nPAGESIZE=4096\nNUMBER(pgtable_l5_enabled)=1\n"
        b"NUMBER(sme_mask)=140737488355328\n"
    )
    data = elf_core([(0, memory)], cr3s=[0x1000], vmcoreinfo=text)
    with open_image(write(tmp_path, data)) as image:
        assert image.levels == 5  # before what CR4 says
        assert image.sme_mask == 1 << 47
    with open_image(tmp_path / "image", sme_mask=0) as image:
        assert image.sme_mask == 0
    nonsense = b"NUMBER(pgtable_l5_enabled)=x\nNUMBER(sme_mask)=-3\nOSRELEASE\n"
    with open_image(write(tmp_path, elf_core([(0, memory)], vmcoreinfo=nonsense))) as image:
        assert (image.levels, image.sme_mask) == (None, 0)
    with pytest.raises(ValueError, match="one bit below"):
        open_image(tmp_path / "image", sme_mask=3 << 47)


def test_a_hole_that_was_cut_out(memory, tmp_path):
    """As a guest of 3 GiB of QEMU's q35: what lies from 4 GiB on follows the 2 GiB below the hole."""
    path = tmp_path / "memory"
    with open(path, "wb") as file:
        file.write(memory)
        file.seek(2 << 30)
        file.write(memory[::-1])
        file.truncate(3 << 30)
    low, high = 2 << 30, 1 << 30
    with open_image(path, segments=[Segment(4 << 30, high, low), Segment(0, low, 0)]) as image:
        assert image.read(5 * PAGE, 8) == memory[5 * PAGE : 5 * PAGE + 8]
        assert image.read((4 << 30) + 3 * PAGE, 8) == memory[::-1][3 * PAGE : 3 * PAGE + 8]
        assert not image.contains(np.array([low, (4 << 30) - 1], dtype=np.uint64)).any()
    with open_image(path, segments=[Segment(0, low, 0), Segment(4 << 30, 2 * high, low)]) as image:
        assert image.truncated == high
        assert "lacks" in image.describe()["notes"][0]
    with pytest.raises(ImageError, match="must not overlap"):
        open_image(path, segments=[Segment(0, low, 0), Segment(PAGE, low, low)])
    with pytest.raises(ImageError, match="must hold physical memory"):
        open_image(path, segments=[Segment(0, low, 4 << 30)])
    (tmp_path / "elf").write_bytes(elf_core([(0, memory)]))
    with pytest.raises(ImageError, match="for a raw image only"):
        open_image(tmp_path / "elf", segments=[Segment(0, PAGE, 0)])


def test_content_where_no_pc_has_memory_tells_that_a_hole_was_cut_out(memory, tmp_path):
    path = tmp_path / "memory"
    for content, notes in ((memory, 1), (b"\xff" * len(memory), 0)):
        with open(path, "wb") as file:
            file.truncate(5 << 30)
            file.seek(0xFEE8_0000)
            file.write(content)
            if content[0] == 0xFF:
                file.seek(0xFEE0_1000)
                file.write(b"\xff" * 0xFF000)
        with open_image(path) as image:
            assert len(image.describe()["notes"]) == notes
            assert "--segments" in image.hint


#: The first bytes of files that are no memory as it is, and a word that names each.
OTHERS = [
    ("KDUMP   ", "drgn"),
    ("makedumpfile\0", "drgn"),
    ("DISKDUMP", "diskdump"),
    ("AVML", "avml-convert"),
    ("QEVM", "dump-guest-memory"),
    ("LibvirtQemudSave", "virsh"),
    ("LibvirtQemudPart", "virsh"),
    ("\xed\xeb\x0f\xf0", "Xen"),
    ("\xd0\xbe\xd2\xbe", "vmss2core"),
    ("\xd1\xba\xd1\xba", "vmss2core"),
    ("\xd2\xbe\xd2\xbe", ".vmem"),
    ("\xd3\xbe\xd3\xbe", ".vmem"),
    ("\x7fVirtualBox SavedState V2.0\n", "dumpvmcore"),
    ("QFI\xfb", "qcow2"),
    ("KDMV", "VMDK"),
    ("# Disk DescriptorFile\n", "VMDK"),
    ("EVF\x09\x0d\x0a\xff\x00", "ewfexport"),
    ("HIBR", "Windows"),
    ("PAGEDU64", "Windows"),
    (" " * 4086 + "S1SUSPEND\0", "hibernation"),
    ("\x1f\x8b\x08\x00", "gzip"),
    ("\xfd7zXZ\x00", "xz: unpack it first"),
    ("\x28\xb5\x2f\xfd", "zstd"),
    ("BZh91AY", "bzip2"),
    ("\x04\x22\x4d\x18", "lz4"),
    ("\x89LZO\x00\x0d\x0a\x1a\x0a", "lzop"),
    ("\xff\x06\x00\x00sNaPpY", "snappy"),
    ("\x78\x9c", "zlib"),
    ("PK\x03\x04", "AFF4"),
    ("7z\xbc\xaf\x27\x1c", "7z"),
    ("Rar!\x1a\x07\x01\x00", "rar"),
    (" " * 257 + "ustar", "tar"),
]


@pytest.mark.parametrize(("head", "word"), OTHERS, ids=[word for _, word in OTHERS])
def test_a_file_with_a_magic_is_never_raw(head, word, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "drgn", None)  # as if it were not installed
    with pytest.raises(ImageError, match=word.replace(".", "[.]")):
        open_image(write(tmp_path, head.encode("latin-1").ljust(8192, b"Z")))


def test_the_documentation_names_every_format():
    page = (Path(__file__).parents[2] / "docs" / "dumps.md").read_text()
    assert [known.what for known in KNOWN if known.what not in page] == []


@pytest.mark.parametrize(
    ("elf_class", "data", "machine", "name"),
    [
        (1, 1, 3, "80386"),
        (2, 1, 183, "AArch64"),
        (2, 2, 22, "S/390"),
        (2, 1, 21, "PowerPC64"),
        (2, 1, 9, "another"),
    ],
)
def test_cores_of_other_machines_are_named(elf_class, data, machine, name, memory, tmp_path):
    core = bytearray(elf_core([(0, memory)]))
    core[4:6] = bytes((elf_class, data))
    struct.pack_into("<HH" if data == 1 else ">HH", core, 16, 4, machine)
    with pytest.raises(ImageError, match=name):
        open_image(write(tmp_path, bytes(core)))


def test_the_core_of_xen_is_named(memory, tmp_path):
    """xl dump-core writes sections and no program headers (tools/libs/ctrl/xc_dom_core of Xen)."""
    core = bytearray(elf_core([(0, memory)]))
    struct.pack_into("<HHHH", core, 54, 0, 0, 64, 7)
    with pytest.raises(ImageError, match="Xen"):
        open_image(write(tmp_path, bytes(core)))


def test_only_files_and_block_devices_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(ImageError, match="must be a file"):
            open_image(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"\x7fELF" + bytes(20), "has 64 bytes"),
        (b"\x7fELF" + bytes(100), "64-bit x86"),
        (b"EMiL" + bytes(40), "version 1"),
    ],
)
def test_what_is_no_image_is_said_to_be_none(data, message, tmp_path):
    with pytest.raises(ImageError, match=message):
        open_image(write(tmp_path, data))


def test_the_core_of_a_process_is_no_image(memory, tmp_path):
    with pytest.raises(ImageError, match="core of a process"):
        open_image(write(tmp_path, elf_core([(0, memory[:PAGE]), (0, memory[:PAGE])])))
    one = bytearray(elf_core([(0, memory)]))
    struct.pack_into("<Q", one, 64 + 56 + 16, 0x40_0000)  # p_vaddr: the program's own
    with pytest.raises(ImageError, match="core of a process"):
        open_image(write(tmp_path, bytes(one)))


def test_a_folder_and_a_wrong_format_are_refused(tmp_path):
    with pytest.raises(IsADirectoryError):
        os.close(os.open(tmp_path, os.O_WRONLY))
    with pytest.raises(ImageError, match="must be a file"):
        open_image(tmp_path)
    with pytest.raises(ValueError, match="format must be one of"):
        open_image(tmp_path, format="vmem")


def test_any_object_that_reads_is_memory(memory):
    class Debugger:
        def read(self, address, size):
            if address + size > len(memory):
                raise RuntimeError("no such memory")
            return memory[address : address + size]

    for source in (as_source(Debugger()), ReaderSource(lambda a, n: memory[a : a + n])):
        pages, there = source.read_pages(np.array([63, 64, 2], dtype=np.uint64))
        assert there.tolist() == [True, False, True]
        assert pages[2].tobytes() == memory[2 * PAGE : 3 * PAGE]
        with pytest.raises(MissingMemoryError):
            source.read(64 * PAGE, 8)
        with pytest.raises(NotImplementedError, match="CR3"):
            source.scan()


def test_errors_of_a_reader_that_mean_something_else_go_through():
    def broken(address, size):
        raise TypeError("a bug of its own")

    with pytest.raises(TypeError, match="of its own"):
        ReaderSource(broken).read_pages(np.zeros(1, dtype=np.uint64))
    with pytest.raises(TypeError, match="must be a path"):
        as_source(17)
    assert "ImageFile" in gpuhmm.image.__all__
