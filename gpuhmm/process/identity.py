"""Who a pid is, whether it can be read, and stopping it meanwhile.

Source: fs/proc/array.c:do_task_stat (v6.18).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gpuhmm.capture.record import Identity

_PF_KTHREAD = 0x0020_0000

#: How long a process may take to stop; one that waits for a disk cannot at once.
_STOP_SECONDS = 5.0


def identify(pid: int) -> Identity:
    """Return who ``pid`` is.

    ProcessLookupError for one that does not exist or has ended, ValueError for a kernel thread.
    """
    try:
        found = _stat(f"/proc/{pid}/stat", pid)
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        raise ProcessLookupError(f"no process with pid {pid}") from None
    if found.kernel_thread:
        raise ValueError(f"process {pid} ({found.command}) is a kernel thread: it has no user address space")
    if found.state in "ZX":
        raise ProcessLookupError(f"process {pid} ({found.command}) has ended: it is a zombie without memory")
    return found


def _stat(path: str, pid: int) -> Identity:
    with open(path, "rb") as file:
        text = file.read().decode(errors="backslashreplace")
    head, _, rest = text.rpartition(")")
    fields = rest.split()
    return Identity(
        pid, head.partition("(")[2], fields[0], int(fields[1]), bool(int(fields[6]) & _PF_KTHREAD)
    )


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop process ``pid`` (SIGSTOP) for the time of the block, then let it go on (SIGCONT).

    One that was stopped before stays so.  ValueError for this process and those it descends from: none
    of them could wait for us.  PermissionError if it may not be signalled, TimeoutError if it does not
    stop.
    """
    if identify(pid).is_self:
        raise ValueError("a process cannot stop itself and read on: --stop needs the pid of another one")
    if pid in _ancestors():
        raise ValueError(
            f"process {pid} must not be stopped: this command runs below it and would hang its terminal"
        )
    if _all_stopped(pid):
        yield
        return
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        raise ProcessLookupError(f"no process with pid {pid}") from None
    try:
        with _ending_signals_raise():
            try:
                _send(handle, signal.SIGSTOP, pid)
                _await_stop(pid)
                yield
            finally:
                _send(handle, signal.SIGCONT, pid)
    finally:
        os.close(handle)


def _send(handle: int, number: signal.Signals, pid: int) -> None:
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass  # whoever reads it next will say so
    except PermissionError:
        raise PermissionError(f"process {pid} may not be stopped: it belongs to another user") from None


def _await_stop(pid: int) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    while not _all_stopped(pid):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} did not stop within {_STOP_SECONDS:g} seconds")
        time.sleep(0.001)


def _all_stopped(pid: int) -> bool:
    """True if every thread is stopped, or none is left to wait for."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        states = [_stat(f"/proc/{pid}/task/{thread}/stat", pid).state for thread in threads]
    except (FileNotFoundError, ProcessLookupError):
        return not os.path.exists(f"/proc/{pid}")
    return all(state in "TtZX" for state in states)


def _ancestors() -> set[int]:
    found: set[int] = set()
    pid = os.getppid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = _stat(f"/proc/{pid}/stat", pid).parent
        except OSError:
            break
    return found


@contextmanager
def _ending_signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack, so that nobody stays stopped."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
