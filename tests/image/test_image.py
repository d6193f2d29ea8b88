"""Images of physical memory: every format gives the same pages, and what is missing is missing."""

import os

import numpy as np
import pytest
from table_images import elf_core, lime

import gpuhmm.image
from gpuhmm.errors import ImageError, MissingMemoryError
from gpuhmm.image import ReaderSource, as_source, open_image

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


def test_what_an_elf_file_promises_beyond_the_file_is_missing(memory, tmp_path):
    with open_image(write(tmp_path, elf_core([(0, memory)], memory_beyond=PAGE))) as image:
        assert image.size == len(memory)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"\x7fELF" + bytes(20), "has 64 bytes"),
        (b"\x7fELF" + bytes(100), "64-bit x86"),
        (b"EMiL" + bytes(40), "version 1"),
        (b"KDUMP   " + bytes(100), "compressed kdump"),
        (b"\xfd7zXZ\x00" + bytes(100), "unpack it first"),
    ],
)
def test_what_is_no_image_is_said_to_be_none(data, message, tmp_path):
    with pytest.raises(ImageError, match=message):
        open_image(write(tmp_path, data))


def test_the_core_of_a_process_is_no_image(memory, tmp_path):
    with pytest.raises(ImageError, match="core of a process"):
        open_image(write(tmp_path, elf_core([(0, memory[:PAGE]), (0, memory[:PAGE])])))


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
