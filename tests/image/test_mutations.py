"""Images whose bytes were changed: each reader gives a result or a clear error, in bounded time and room."""

import os
import random
import resource
import time

import pytest
from table_images import elf_core, lime, map_kernel, random_image

from gpuhmm.dump import find_roots, load_tables, read_dump, release_of
from gpuhmm.errors import MissingMemoryError
from gpuhmm.image import Segment, open_image
from gpuhmm.translation import mappings

#: As many of each format; 500 were run by hand.
COUNT = int(os.environ.get("GPUHMM_MUTATIONS", "12"))
HALF = 24 * 4096

VMCOREINFO = b"OSRELEASE=6.1.0\nNUMBER(pgtable_l5_enabled)=0\nNUMBER(sme_mask)=0\n"
FORMS = {
    "raw": lambda data: data,
    "segments": lambda data: data,
    "elf": lambda data: elf_core(
        [(0, data[:HALF]), (HALF, data[HALF:])], [4096], memory_beyond=64, vmcoreinfo=VMCOREINFO
    ),
    "lime": lambda data: lime([(0, data[:HALF]), (HALF, data[HALF:])]),
}


def mutated(rng, data, header):
    """Return ``data`` with some bytes, words or stretches changed, most of them in its ``header`` bytes."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 12)):
        at = rng.randrange(header if rng.randrange(3) else len(changed) - 8)
        kind = rng.randrange(3)
        if kind == 0:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            word = rng.choice([0, 1, (1 << 64) - 1, 1 << 63, 1 << 52, len(data), rng.randrange(1 << 64)])
            changed[at & -8 : (at & -8) + 8] = word.to_bytes(8, "little")
        else:
            changed[at : at + 64] = changed[:64]
    if not rng.randrange(4):
        del changed[rng.randrange(1, len(changed)) :]
    return changed


def look_at_all_of(data, path, form, cr3):
    """Do what the commands do with a dump."""
    path.write_bytes(data)
    segments = [Segment(0, HALF, 0), Segment(HALF, HALF, HALF)] if form == "segments" else ()
    with open_image(path, segments=segments) as memory:
        release_of(memory)
        find_roots(memory)
        mappings(load_tables(memory, cr3, max_tables=1 << 14))
        read_dump(memory, cr3)


@pytest.mark.parametrize("form", FORMS)
def test_changed_bytes_give_an_error_or_an_answer(form, tmp_path):
    rng = random.Random(form)
    image = random_image(rng, pages=48, tables=8)
    map_kernel(image)
    data = FORMS[form](image.bytes())
    header = 2 * 4096 if form in ("raw", "segments") else 1024
    look_at_all_of(data, tmp_path / "image", form, image.cr3)
    refused = 0
    for _ in range(COUNT):
        begun = time.monotonic()
        try:
            look_at_all_of(mutated(rng, data, header), tmp_path / "image", form, image.cr3)
        except (ValueError, MissingMemoryError):
            refused += 1
        assert time.monotonic() - begun < 60  # a hang, whatever the machine
    assert refused < COUNT
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20  # KiB
