"""Work of a stream is done as late as CUDA allows: who does not wait sees what was there."""

import ctypes

import numpy as np
import pytest
from ptx_kernels import download, entry, new_machine, place, upload

from gpuhmm.check.ptx import Kernel

ADD_ONE = f"{place(8)} ld.global.u64 %rd1, [%rd0]; add.s64 %rd1, %rd1, 1; st.global.u64 [%rd0], %rd1; ret;"
DEFAULT = 0


class Device:
    """A machine with one array of 32 words, each 0."""

    def __init__(self):
        self.machine = new_machine()
        self.words = upload(self.machine, np.zeros(32, dtype=np.uint64))
        self.kernel = Kernel.of("add_one", entry(ADD_ONE))
        self.machine.streams.wait_for_all()

    def stream(self, blocking=True):
        return self.machine.streams.create(blocking)

    def add_one(self, stream):
        return self.machine.launch(self.kernel, [self.words.address], [self.words], 1, 32, stream)

    def wait_in_default(self):
        self.machine.streams.put(DEFAULT, lambda: None)
        self.machine.streams.wait(DEFAULT)

    def now(self):
        """Return what every word is now, without waiting for anything."""
        seen = set((ctypes.c_uint64 * 32).from_address(self.words.address))
        assert len(seen) == 1
        return seen.pop()


@pytest.fixture
def device():
    return Device()


def test_a_launch_waits_until_somebody_waits_for_it(device):
    device.add_one(DEFAULT)
    assert device.now() == 0
    device.machine.streams.wait(DEFAULT)
    assert device.now() == 1


def test_a_stream_does_not_wait_for_another(device):
    one, other = device.stream(), device.stream()
    device.add_one(one)
    device.add_one(other)
    device.machine.streams.wait(other)
    assert device.now() == 1
    device.machine.streams.wait(one)
    assert device.now() == 2


def test_a_blocking_stream_and_the_default_stream_wait_for_each_other(device):
    stream = device.stream()
    device.add_one(stream)
    device.add_one(DEFAULT)
    device.machine.streams.wait(DEFAULT)
    assert device.now() == 2
    device.add_one(DEFAULT)
    device.add_one(stream)
    device.machine.streams.wait(stream)
    assert device.now() == 4


def test_a_non_blocking_stream_and_the_default_stream_do_not(device):
    stream = device.stream(blocking=False)
    device.add_one(stream)
    device.add_one(DEFAULT)
    device.machine.streams.wait(DEFAULT)
    assert device.now() == 1
    device.add_one(DEFAULT)
    device.machine.streams.wait(stream)
    assert device.now() == 2
    device.machine.streams.wait_for_all()
    assert device.now() == 3


def test_work_after_other_work(device):
    one, other = device.stream(False), device.stream(False)
    first = device.add_one(one)
    device.machine.streams.put(other, lambda: None, first)
    device.machine.streams.wait(other)
    assert device.now() == 1


def test_a_destroyed_stream_does_its_work(device):
    for blocking, wait in ((False, device.machine.streams.wait_for_all), (True, device.wait_in_default)):
        stream, before = device.stream(blocking), device.now()
        device.add_one(stream)
        device.machine.streams.destroy(stream)
        assert device.now() == before
        wait()
        assert device.now() == before + 1
    with pytest.raises(ValueError, match="a stream must have been created here"):
        device.add_one(stream)


def test_copies_from_memory_that_is_not_pinned_take_it_at_once(device):
    source = np.full(32, 7, dtype=np.uint64)
    stream = device.stream()
    for waits in (False, True):
        source[:] = 7
        device.machine.upload(device.words.address, source.ctypes.data, 256, stream, waits)
        source[:] = 8
        assert device.now() != 7  # it is on its way, even where the host waited for what was before
        device.machine.streams.wait(stream)
        assert device.now() == 7
        device.machine.fill(device.words.address, 0, 256, stream)
        device.machine.streams.wait(stream)


def test_copies_from_pinned_memory_take_it_late(device):
    source = np.full(32, 7, dtype=np.uint64)
    device.machine.pin(source.ctypes.data, source.nbytes)
    stream = device.stream()
    device.machine.upload(device.words.address, source.ctypes.data, 256, stream, waits=False)
    source[:] = 8
    device.machine.streams.wait(stream)
    assert device.now() == 8
    device.machine.upload(device.words.address, source.ctypes.data, 256, stream, waits=True)
    assert device.now() == 8


def test_copies_to_the_host(device):
    stream, there = device.stream(), np.zeros(32, dtype=np.uint64)
    device.add_one(stream)
    device.machine.download(there.ctypes.data, device.words.address, 256, stream, waits=False)
    assert there.tolist() == [1] * 32  # it is not pinned: the host waited
    device.machine.pin(there.ctypes.data, there.nbytes)
    device.add_one(stream)
    device.machine.download(there.ctypes.data, device.words.address, 256, stream, waits=False)
    assert there.tolist() == [1] * 32
    device.machine.streams.wait(stream)
    assert there.tolist() == [2] * 32


def test_copies_on_the_device_keep_what_was_not_written(device):
    machine = device.machine
    made = machine.memory.allocate(256)
    machine.move(made.address + 128, device.words.address, 128, DEFAULT)
    machine.streams.wait_for_all()
    assert made.written.tolist() == [0] * 128 + [1] * 128
    machine.move(device.words.address, made.address, 256, DEFAULT)
    machine.streams.wait_for_all()
    assert machine.memory.find(device.words.address, 256, "").written.sum() == 128


def test_bytes_are_set_late(device):
    device.machine.fill(device.words.address, 1, 256, DEFAULT)
    assert device.now() == 0
    assert download(device.machine, device.words).tolist() == [0x0101010101010101] * 32


def test_what_lies_in_no_allocation_is_refused(device):
    machine, words, here = device.machine, device.words, np.zeros(33, dtype=np.uint64)
    with pytest.raises(IndexError, match=r"a copy to the device: 264 bytes at .* must lie in one allocation"):
        machine.upload(words.address, here.ctypes.data, 264, DEFAULT, waits=True)
    with pytest.raises(IndexError, match="a copy to the host"):
        machine.download(here.ctypes.data, words.address - 8, 16, DEFAULT, waits=True)
    with pytest.raises(IndexError, match="a copy on the device"):
        machine.move(words.address + 8, words.address, 256, DEFAULT)
    with pytest.raises(IndexError, match="memset"):
        machine.fill(words.address + 255, 0, 2, DEFAULT)
    machine.memory.free(words.address)
    with pytest.raises(IndexError, match="a copy to the host"):
        machine.download(here.ctypes.data, words.address, 8, DEFAULT, waits=True)
    with pytest.raises(ValueError, match="what is freed must have been allocated"):
        machine.memory.free(words.address)
    with pytest.raises(ValueError, match="a byte at least"):
        machine.memory.allocate(0)


def test_events_are_recorded_while_asked_for(device):
    machine = device.machine
    with machine.recorded() as events:
        device.add_one(DEFAULT)
        download(machine, device.words)
        machine.note("wait")
    device.add_one(DEFAULT)
    assert [(event.what, event.bytes, event.kernel) for event in events] == [
        ("launch", 0, "add_one"),
        ("d2h", 256, ""),
        ("wait", 0, ""),
    ]
    assert events[0].counts["load_bytes"] == 256
    assert machine.totals["launch add_one"] == 2


def test_freed_memory_stays_while_queued_work_needs_it(device):
    machine, there = device.machine, np.zeros(32, dtype=np.uint64)
    made = machine.memory.allocate(256)
    machine.fill(made.address, 1, 256, DEFAULT)
    machine.move(device.words.address, made.address, 256, DEFAULT)
    machine.memory.free(made.address)
    with pytest.raises(IndexError, match="a copy on the device"):
        machine.move(device.words.address, made.address, 256, DEFAULT)
    machine.download(there.ctypes.data, device.words.address, 256, DEFAULT, waits=True)
    assert there.tolist() == [0x0101010101010101] * 32
