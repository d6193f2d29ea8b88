"""``pytest -p ptx_machine``: the tests of the CUDA back end on the PTX machine, not on a GPU.

A test in which a kernel made a mistake fails, whatever it asserts.  Threads run in an order that
differs from test to test.
"""

from zlib import crc32

import pytest

from gpuhmm.check.ptx import Options, install

MACHINE = install()
_ORDERS = ("first to last", "last to first", "random")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Run the test, and then ask the machine what it found."""
    seed = crc32(item.nodeid.encode())
    MACHINE.options = Options(order=_ORDERS[seed % 3], seed=seed)
    result = yield
    MACHINE.streams.wait_for_all()
    mistakes = MACHINE.take_mistakes()
    assert not mistakes, f"{item.name}: {mistakes[:5]}"
    return result


def pytest_terminal_summary(terminalreporter):
    """Say which kernels ran, and how often."""
    ran = {name: count for name, count in MACHINE.totals.items() if name.startswith("launch ")}
    terminalreporter.write_line(f"PTX machine: {ran}")
