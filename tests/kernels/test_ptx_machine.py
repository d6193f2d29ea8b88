"""The compiled CUDA kernels without a GPU: on the PTX machine, which runs their PTX on this CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpuhmm.check.ptx.build import c_compiler
from gpuhmm.errors import BackendError

TESTS = Path(__file__).parents[1]
#: What a GPU would run, and what the machine alone does.
FILES = [
    "kernels/test_gpu.py",
    "translation/test_gpu_translation.py",
    *(str(path.relative_to(TESTS)) for path in sorted((TESTS / "ptx").glob("on_ptx_machine*.py"))),
]


def test_compiled_kernels_on_the_ptx_machine():
    try:
        c_compiler()
    except BackendError as error:
        pytest.skip(str(error))
    # A process of its own: the machine takes the place of the CUDA driver for good.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "ptx_machine"]
    folders = "tests/support tests/mirror tests/translation"
    command += ["-o", f"pythonpath={folders}", *(str(TESTS / name) for name in FILES)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS / "support"), os.environ.get("PYTHONPATH", "")]),
        "NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS": "0",
    }
    done = subprocess.run(
        command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PTX machine: {'launch " in done.stdout
