"""The exceptions of gpuhmm, each also a builtin one."""

from __future__ import annotations

import errno
import os


class ArrayTypeError(TypeError, ValueError):
    """An array of the wrong type or dtype."""


class BackendError(RuntimeError):
    """A back end that cannot run here; the message says what to install or to set."""


class LivelockError(RuntimeError):
    """Faults that succeed but change nothing, again and again: the kernel would loop for ever."""


class HmmError(OSError):
    """What ``hmm_range_fault()`` returned, as an exception; ``errno`` is the positive number."""

    def __new__(cls, code: int, *args: object) -> HmmError:
        """Make the subclass that fits ``code``."""
        return super().__new__(_BY_ERRNO.get(code, cls) if cls is HmmError else cls, code, *args)

    @classmethod
    def of(cls, ret: int, start: int, end: int) -> HmmError:
        """Return the exception for the negative errno ``ret`` of a walk of ``[start, end)``."""
        text = f"hmm_range_fault of [{start:#x}, {end:#x}): {os.strerror(-ret)}"
        return cls(-ret, text)


class HmmFaultError(HmmError):
    """-EFAULT: a page that was asked for cannot be faulted in."""


class HmmPermissionError(HmmError, PermissionError):
    """-EPERM: write access was asked for in an area without VM_WRITE."""


class HmmTimeoutError(HmmError, TimeoutError):
    """-EBUSY until the time was up: the range was invalidated again and again."""


class HmmInvalidError(HmmError):
    """-EINVAL: an empty range, or a fault that failed for no known reason (v7.3 and later)."""


class HmmMemoryError(HmmError, MemoryError):
    """-ENOMEM: a fault found no memory (v7.3 and later; -EFAULT before)."""


_BY_ERRNO: dict[int, type[HmmError]] = {
    errno.EFAULT: HmmFaultError,
    errno.EPERM: HmmPermissionError,
    errno.EBUSY: HmmTimeoutError,
    errno.EINVAL: HmmInvalidError,
    errno.ENOMEM: HmmMemoryError,
}


class ImageError(ValueError):
    """A file that is no image of physical memory, or not one that can be read."""


class MissingMemoryError(LookupError):
    """Physical memory that an image does not hold."""


class SnapshotError(ValueError):
    """A folder that is no snapshot, or one that is damaged or of a newer version."""
