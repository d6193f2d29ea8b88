"""Every CUDA kernel compiles to PTX and through ptxas: no spills, no double precision, no calls."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from contracts import arguments
from cuda_compiler import compile_ptx  # noqa: F401

from gpuhmm.bench import cuda_cpp
from gpuhmm.coalesce.preprocess import cuda as preprocess
from gpuhmm.kernels import cuda_batch, cuda_resolve, cuda_runs, cuda_stream, device_tables
from gpuhmm.translation import cuda as translation

KERNELS = {
    kernel: types
    for module in (
        cuda_resolve,
        cuda_stream,
        cuda_runs,
        cuda_batch,
        device_tables,
        translation,
        preprocess,
    )
    for kernel, types in module.KERNELS.items()
}


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
    if kernel in cuda_stream.KERNELS:
        assert int(re.search(r"Used (\d+) registers", done.stderr)[1]) <= 32
        assert ".local" not in ptx


def test_the_kernel_in_cuda_cpp_compiles_and_moves_16_bytes_an_access():
    from cuda.bindings import nvrtc

    _, program = nvrtc.nvrtcCreateProgram(cuda_cpp.SOURCE.encode(), b"stream.cu", 0, [], [])
    (result,) = nvrtc.nvrtcCompileProgram(program, 1, [b"--gpu-architecture=sm_90"])
    assert result == nvrtc.nvrtcResult.NVRTC_SUCCESS
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = b" " * size
    nvrtc.nvrtcGetPTX(program, ptx)
    assert len(re.findall(rb"ld\.global(\.nc)?\.v2\.u64", ptx)) >= 1
    assert len(re.findall(rb"st\.global\.v2\.u64", ptx)) >= 1


@pytest.mark.parametrize(
    ("kernel", "loads", "stores"),
    [(cuda_stream.stream_kernel, 1, 2), (cuda_stream.stream_asked_kernel, 3, 2)],
    ids=["stream", "stream_asked"],
)
def test_streaming_kernels_move_16_bytes_an_access(kernel, loads, stores, compile_ptx):  # noqa: F811
    # Two pages an access: a PTE pair and a word pair each, and a pair of inputs where pages ask.  There
    # is one store in the loop over PTEs and one in the loop over fills.
    ptx, _ = compile_ptx(kernel.py_func, arguments(KERNELS[kernel]), (9, 0))
    assert len(re.findall(r"ld\.global\.v2\.u64", ptx)) == loads
    assert len(re.findall(r"st\.global\.v2\.u64", ptx)) == stores
    # What is read in addition is the slot's plan, once a thread; what is written, its mark.
    plan_fields = {cuda_stream.stream_kernel: 4, cuda_stream.stream_asked_kernel: 5}[kernel]
    assert len(re.findall(r"ld\.global\.[a-z]+64", ptx)) == plan_fields
