"""Reads a compressed kdump through drgn, in a process of its own, started by :mod:`gpuhmm.image.kdump`.

libkdumpfile maps the file, so that one that is broken can end the process that reads it.  First comes
VMCOREINFO, then an answer for each address and size; every answer has its length before it.
"""

from __future__ import annotations

import resource
import signal
import struct
import sys

#: Seconds that one answer may take, and bytes of address space.
_SECONDS = 60
_ROOM = 16 << 30


def main(path: str) -> None:
    """Answer until nobody asks any more."""
    import drgn

    resource.setrlimit(resource.RLIMIT_AS, (_ROOM, _ROOM))
    signal.alarm(_SECONDS)
    program = drgn.Program()
    program.set_core_dump(path)
    data = program["VMCOREINFO"].string_()
    while True:
        sys.stdout.buffer.write(struct.pack("<Q", len(data)) + data)
        sys.stdout.buffer.flush()
        request = sys.stdin.buffer.read(16)
        if not request:
            return
        signal.alarm(_SECONDS)
        try:
            data = program.read(*struct.unpack("<QQ", request), physical=True)
        except drgn.FaultError:
            data = b""


if __name__ == "__main__":
    main(sys.argv[1])
