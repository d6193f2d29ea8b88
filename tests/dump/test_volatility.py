"""volatility3's Intel layer and gpuhmm give the same, page by page; each serves as a layer of the other."""

import random

import numpy as np
import pytest
from guest import CR3, guest, write_image
from table_images import expanded, random_image

from gpuhmm.dump import load_tables
from gpuhmm.errors import MissingMemoryError
from gpuhmm.image import ReaderSource, open_image
from gpuhmm.translation import mappings, translate

contexts = pytest.importorskip("volatility3.framework.contexts", reason="volatility3 is not installed")
from volatility3.framework import exceptions  # noqa: E402
from volatility3.framework.layers import intel  # noqa: E402

from gpuhmm.dump.volatility import PhysicalLayer, TranslationLayer  # noqa: E402

LOW_48 = np.uint64((1 << 48) - 1)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_image(guest(), tmp_path_factory.mktemp("guest") / "memory.raw")


@pytest.fixture(scope="module")
def context(image):
    """Return a context with the memory, volatility3's translation of it, and gpuhmm's."""
    made = contexts.Context()
    with open_image(image) as opened:
        made.add_layer(PhysicalLayer(made, "memory", opened))
        made.config["theirs.memory_layer"] = "memory"
        made.config["theirs.page_map_offset"] = CR3
        made.add_layer(intel.LinuxIntel32e(made, "theirs", "theirs"))
        made.add_layer(TranslationLayer(made, "ours", load_tables(opened, CR3), "memory"))
        yield made


def their_address(layer, va):
    try:
        return layer._translate(va)[0]
    except exceptions.InvalidAddressException:
        return None


def test_every_mapped_page_of_the_guest(context, image):
    tables = load_tables(image, CR3)
    vas, pas, _ = expanded(mappings(tables, split_by="address"))
    assert len(vas) == 96_778
    theirs = context.layers["theirs"]
    assert [their_address(theirs, va) for va in (vas & LOW_48).tolist()] == pas.tolist()
    # What lies between: the pages next to every run are mapped by neither, or by both alike.
    beside = np.unique(np.concatenate((vas - np.uint64(4096), vas + np.uint64(4096))))
    beside = beside[(beside < 1 << 47) | (beside >= (1 << 64) - (1 << 47))]
    ours = translate(tables, beside)
    expected = [their_address(theirs, va) for va in (beside & LOW_48).tolist()]
    assert [pa is not None for pa in expected] == ours.mapped.tolist()
    assert [pa for pa in expected if pa is not None] == ours.physical[ours.mapped].tolist()


def test_the_runs_of_the_guest(context, image):
    """Their runs, cut where ours must be: where PROTNONE begins, and where memory ends."""
    tables = load_tables(image, CR3)
    vas, pas, _ = expanded(mappings(tables, split_by="address"))
    there = pas < 256 << 20
    theirs = context.layers["theirs"].mapping(0, 1 << 48, ignore_errors=True)
    pages = [(va + at, pa + at) for va, size, pa, _, _ in theirs for at in range(0, size, 4096)]
    assert pages == list(zip((vas[there] & LOW_48).tolist(), pas[there].tolist(), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_random_tables(seed):
    image = random_image(random.Random(seed), tables=12)
    data = image.bytes()
    memory = ReaderSource(lambda at, size: data[at : at + size])
    context = contexts.Context()
    context.add_layer(PhysicalLayer(context, "memory", memory, maximum_address=len(data) - 1))
    context.config["theirs.memory_layer"] = "memory"
    context.config["theirs.page_map_offset"] = image.cr3
    theirs = intel.LinuxIntel32e(context, "theirs", "theirs")
    tables = load_tables(memory, image.cr3)
    vas, pas, _ = expanded(mappings(tables))
    chosen = np.random.default_rng(seed).permutation(len(vas))[:3000]
    small = translate(tables, vas[chosen]).levels == 1
    for va, pa in zip((vas[chosen][small] & LOW_48).tolist(), pas[chosen][small].tolist(), strict=True):
        # They read PFNs of 46 bits.
        assert their_address(theirs, va) == pa & (1 << 46) - 1


def test_our_layer_reads_what_theirs_reads(context):
    ours, theirs = context.layers["ours"], context.layers["theirs"]
    for va, size in [
        (0x400000, 64),
        (0x400FF0, 0x3000),
        (0xFFFF_FF81_0000_0000 & int(LOW_48), 16),
        (0x1000, 8),
    ]:
        assert ours.is_valid(va, size) == theirs.is_valid(va, size)
        seen = [layer.read(va, size, pad=True) for layer in (ours, theirs)]
        assert seen[0] == seen[1]
        assert list(ours.mapping(va, size, ignore_errors=True)) == list(
            theirs.mapping(va, size, ignore_errors=True)
        )
    with pytest.raises(exceptions.InvalidAddressException):
        ours.read(0x1000, 8)
    with pytest.raises(exceptions.InvalidAddressException):
        ours.translate(0x1000)
    assert ours.translate(0x400000) == theirs.translate(0x400000)
    assert ours.translate(0x1000, ignore_errors=True) == (None, None)
    assert ours.canonicalize(1 << 47) == theirs.canonicalize(1 << 47)
    assert ours.decanonicalize(ours.canonicalize(1 << 47)) == 1 << 47
    with pytest.raises(NotImplementedError):
        context.layers["memory"].write(0, b"x")


def test_a_layer_of_theirs_is_physical_memory(context, image):
    """gpuhmm reads its tables through volatility3."""
    tables = load_tables(context.layers["memory"], CR3)
    direct = load_tables(image, CR3)
    assert np.array_equal(tables.upper, direct.upper)
    assert np.array_equal(tables.leaf, direct.leaf)
    with pytest.raises(MissingMemoryError):
        ReaderSource(context.layers["memory"]).read(1 << 40, 8)
