"""The choice of a back end."""

import pytest
from spaces import BASE, anonymous, ask

from gpuhmm import BackendError, resolve_backend
from gpuhmm.hmm import backends


@pytest.fixture(autouse=True)
def forget():
    resolve_backend.cache_clear()
    yield
    resolve_backend.cache_clear()


def test_auto_looks_for_a_device_once_and_again_when_the_answer_is_forgotten(monkeypatch):
    looked = []

    def none_here():
        looked.append("here")
        raise BackendError("no device")

    monkeypatch.setattr(backends, "_cuda_device", none_here)
    for _ in range(3):
        assert ask(anonymous(1), BASE, 1, "auto")[0] == 0
    assert resolve_backend("auto") is resolve_backend("cpu")
    assert len(looked) == 1

    monkeypatch.setattr(backends, "_cuda_device", lambda: "a device of 2026")
    assert resolve_backend("auto").name == "cpu"
    resolve_backend.cache_clear()
    assert resolve_backend("auto") == backends.BackendInfo("cuda", "a device of 2026")


def test_the_processor_is_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(backends, "_cpu_model", lambda: read.append("/proc/cpuinfo") or "a processor")
    for _ in range(2):
        assert ask(anonymous(1), BASE, 1, "cpu")[0] == 0
    assert resolve_backend("cpu").device.startswith("a processor, ")
    assert len(read) == 1
