"""Every CUDA kernel compiles to PTX and through ptxas: no spills, no double precision, no calls."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from contracts import arguments
from cuda_compiler import compile_ptx  # noqa: F401

from gpuhmm.kernels import cuda as cuda_backend
from gpuhmm.kernels import cuda_runs, device_tables

KERNELS = {**cuda_backend.KERNELS, **cuda_runs.KERNELS, **device_tables.KERNELS}


def find_ptxas():
    """Return ptxas of the nvidia-cuda-nvcc wheel, whose version fits that of NVVM."""
    for folder in map(Path, sys.path):
        for found in folder.glob("nvidia/cu*/bin/ptxas"):
            return str(found)
    return shutil.which("ptxas")


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.py_func.__name__)
def test_kernel_compiles_without_spills_doubles_or_calls(kernel, cc, compile_ptx, tmp_path):  # noqa: F811
    ptx, _ = compile_ptx(kernel.py_func, arguments(KERNELS[kernel]), cc)
    assert ".f64" not in ptx
    assert not re.search(r"^\s*call", ptx, re.MULTILINE)

    ptxas = find_ptxas()
    assert ptxas, "ptxas is missing: install the test extra, which brings nvidia-cuda-nvcc"
    source = tmp_path / "kernel.ptx"
    source.write_text(ptx)
    command = [ptxas, "-v", f"-arch=sm_{cc[0]}{cc[1]}", str(source), "-o", str(tmp_path / "kernel.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b0 bytes spill stores, 0 bytes spill loads", done.stderr), done.stderr
    assert not re.search(r"[1-9]\d* bytes spill", done.stderr), done.stderr
