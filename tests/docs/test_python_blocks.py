"""The Python of README.md and docs/ runs, and prints what the pages say.

The blocks of a page run one after the other in one namespace, as a reader would type them.  A block prints
the block of text that follows it, and nothing where none does.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from guest import guest, write_image, write_maps
from table_images import lime

from gpuhmm.image import open_image

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
BLOCKS = {page: BLOCK.findall(page.read_text()) for page in PAGES}


@pytest.fixture(scope="module")
def record():
    return guest()


@pytest.fixture
def folder(record, tmp_path, monkeypatch):
    """Return the current folder, with the files that the pages name: the guest's page tables."""
    write_image(record, tmp_path / "guest.raw")
    tables = zip(record.table_pfns.tolist(), record.tables, strict=True)
    pieces = [(pfn << 12, table.astype("<u8").tobytes()) for pfn, table in tables]
    (tmp_path / "memory.lime").write_bytes(lime(sorted(pieces)))
    write_maps(record, tmp_path / "maps.txt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def other_tools(folder):
    """Return what docs/dumps.md takes from other tools: volatility3's context, MemProcFS, drgn."""
    contexts = pytest.importorskip(
        "volatility3.framework.contexts", reason="volatility3 is not installed: docs/dumps.md uses it"
    )
    from gpuhmm.dump.volatility import PhysicalLayer

    with open_image(folder / "guest.raw") as image:
        context = contexts.Context()
        context.add_layer(PhysicalLayer(context, "memory_layer", image))
        yield {
            "context": context,
            "vmm": SimpleNamespace(memory=image),
            "prog": SimpleNamespace(read=lambda at, size, physical: image.read(at, size)),
        }


def run(blocks, namespace, capsys):
    for code, output in blocks:
        exec(compile(code, "a Python block", "exec"), namespace)
        assert capsys.readouterr().out == output


def test_there_is_something_to_run():
    assert len(BLOCKS[ROOT / "README.md"]) == 3
    assert sum(map(len, BLOCKS.values())) >= 12


def test_every_python_block_is_found():
    for page, blocks in BLOCKS.items():
        assert len(blocks) == len(re.findall("```py", page.read_text())), page


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if BLOCKS[page] and page.name != "dumps.md"], ids=lambda page: page.stem
)
def test_the_blocks_of_a_page(page, capsys):
    run(BLOCKS[page], {"__name__": "page"}, capsys)


def test_the_blocks_that_use_other_tools(other_tools, capsys):
    run(BLOCKS[ROOT / "docs/dumps.md"], {"__name__": "page", **other_tools}, capsys)
