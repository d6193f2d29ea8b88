"""What importing the package must not do, and what compiled code is kept."""

import subprocess
import sys

import pytest

from gpuhmm.kernels import compile_cache

LOADED = """
import sys, gpuhmm, gpuhmm.cli
heavy = [name for name in ("numba", "llvmlite", "cupy", "hypothesis") if name in sys.modules]
assert not heavy, heavy
mm = gpuhmm.AddressSpace()
mm.mmap(0, 4096)
seen = gpuhmm.range_fault(mm, 0, 4096, request="write", backend="reference")
assert seen.valid.all()
assert "numba" not in sys.modules
"""


def test_import_and_reference_need_no_compiler():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


MOVED = """
import gpuhmm
from gpuhmm.fault.entry import NONE, RW, UFFD_WP, A, D, P
from gpuhmm.fault import cow
import gpuhmm.memory.fault.cow, gpuhmm.mm.entry
assert (P, RW, A, D, NONE, UFFD_WP) == (1, 2, 0x20, 0x40, 0x60, 0x400)
assert gpuhmm.fault.entry is gpuhmm.mm.entry
assert cow is gpuhmm.memory.fault.cow
"""


def test_old_names_find_what_moved():
    done = subprocess.run([sys.executable, "-c", MOVED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Return a small package whose sources the cache looks at."""
    package = tmp_path / "package"
    (package / "hmm").mkdir(parents=True)
    (package / "cli").mkdir()
    for name in ("__init__.py", "hmm/pte.py", "cli/walk.py"):
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(compile_cache, "_PACKAGE", package)
    monkeypatch.setenv("GPUHMM_CACHE_DIR", str(tmp_path / "cache"))
    return package


def test_an_edit_of_a_decision_gives_another_cache(sources):
    folder = compile_cache.cache_folder.__wrapped__
    before = folder()
    (sources / "cli/walk.py").write_text("x = 2\n")
    assert folder() == before
    (sources / "hmm/pte.py").write_text("x = 2\n")
    assert folder() != before
