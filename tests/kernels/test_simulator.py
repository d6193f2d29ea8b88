"""The CUDA entry points without a GPU, in numba's simulator."""

import os
import subprocess
import sys
from pathlib import Path


def test_cuda_entry_points_in_the_simulator():
    # A process of its own: numba decides when it is imported whether it simulates.
    tests = Path(__file__).parents[1]
    files = map(str, sorted((tests / "simulator").glob("in_simulator*.py")))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-o", "pythonpath=tests/support tests/mirror", *files]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run(
        command, cwd=tests.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
