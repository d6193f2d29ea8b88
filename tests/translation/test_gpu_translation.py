"""On a CUDA device: translation, runs and changes are those of the CPU, with arrays here and there."""

import random

import numpy as np
import pytest
from cuda_device import device  # noqa: F401
from guest import CR3, guest, write_image
from table_images import interesting_addresses, loaded, random_image

import gpuhmm
from gpuhmm.dump import load_tables
from gpuhmm.translation import mappings, translate, translate_range

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("seed", range(5))
def test_random_tables(seed, levels):
    rng = random.Random(seed)
    image = random_image(rng, levels)
    tables = loaded(image)
    vas = interesting_addresses(rng, image, 5000)
    seen = [translate(tables, vas, backend=backend).words for backend in ("cpu", "cuda")]
    assert np.array_equal(*seen)
    for split_by in ("address", "permissions"):
        runs = [mappings(tables, split_by=split_by, backend=backend) for backend in ("cpu", "cuda")]
        assert np.array_equal(*runs)


def test_the_guest(tmp_path):
    record = guest()
    tables = load_tables(write_image(record, tmp_path / "memory.raw"), CR3)
    npages = (record.end - record.start) >> 12
    seen = [
        translate_range(tables, record.start, npages, backend=backend).words for backend in ("cpu", "cuda")
    ]
    assert np.array_equal(*seen)
    assert np.array_equal(*(mappings(tables, backend=backend) for backend in ("cpu", "cuda")))


def test_device_arrays_stay_on_the_device():
    from numba import cuda

    mm = gpuhmm.AddressSpace()
    mm.mmap(1 << 40, (1 << 40) + (1 << 34))
    pfns = np.random.default_rng(1).integers(0, 1 << 40, 1 << 22, dtype=np.uint64)
    mm.map_pfns(1 << 40, pfns)
    vas = np.uint64(1 << 40) + (np.arange(1 << 22, dtype=np.uint64) << np.uint64(12))
    result = translate(mm, cuda.to_device(vas), backend="cuda")
    assert not isinstance(result.words, np.ndarray)
    assert np.array_equal(result.physical >> np.uint64(12), pfns)
    out = cuda.device_array(1 << 22, dtype=np.uint64)
    assert translate_range(mm, 1 << 40, 1 << 22, backend="cuda", out=out).words is out
    assert np.array_equal(out.copy_to_host(), result.words.copy_to_host())
