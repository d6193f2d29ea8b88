"""``pytest -p ptx_machine``: the tests of the CUDA back end on the PTX machine, not on a GPU.

A test in which a kernel made a mistake fails, whatever it asserts.
"""

import pytest

from gpuhmm.check.ptx import install

MACHINE = install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Run the test, and then ask the machine what it found."""
    result = yield
    MACHINE.streams.wait_for_all()
    mistakes = MACHINE.take_mistakes()
    assert not mistakes, f"{item.name}: {mistakes[:5]}"
    return result


def pytest_terminal_summary(terminalreporter):
    """Say which kernels ran, and how often."""
    ran = {name: count for name, count in MACHINE.totals.items() if name.startswith("launch ")}
    terminalreporter.write_line(f"PTX machine: {ran}")
