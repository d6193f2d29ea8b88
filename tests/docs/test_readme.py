"""The README's commands run; its Python is run with that of the other pages."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = "".join(re.findall(r"```console\n(.*?)```", README, re.DOTALL))
COMMANDS = re.findall(r"^\$ gpuhmm (.*?)(?:\s+#.*)?$", BLOCKS, re.MULTILINE)


def test_there_is_something_to_run():
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_command_runs(arguments):
    command = [sys.executable, "-m", "gpuhmm", *shlex.split(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_make_targets_that_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
