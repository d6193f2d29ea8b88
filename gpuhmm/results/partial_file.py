"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path next to ``path`` to write to; afterwards it is renamed, or removed after an exception.

    What was at ``path`` before is replaced.  OSError, saying which file, where it cannot be written.
    """
    target = Path(path)
    try:
        fd, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    except OSError as error:
        raise OSError(error.errno, f"{target} cannot be written: {error.strerror}") from None
    os.close(fd)
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, target)
    except OSError as error:
        raise OSError(error.errno, f"{target} was not written: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)
