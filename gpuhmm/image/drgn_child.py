"""Reads a compressed kdump through drgn, in a process of its own, started by :mod:`gpuhmm.image.kdump`.

libkdumpfile maps the file, so that one that is broken can end the process that reads it.  First comes
VMCOREINFO, then an answer for each address and size; every answer has its length before it.
"""

from __future__ import annotations

import resource
import signal
import struct
import sys

#: Seconds of processor time that one answer may take, and bytes of address space.
_SECONDS = 60
_ROOM = 16 << 30

#: What drgn asks of a kernel before it reads physical memory.  QEMU without -device vmcoreinfo does not
#: say it; then this does, which has no effect on what is read.
_NO_VMCOREINFO = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=1\nNUMBER(pgtable_l5_enabled)=0\n"


def main(path: str) -> None:
    """Answer until nobody asks any more."""
    import drgn

    resource.setrlimit(resource.RLIMIT_AS, (_ROOM, _ROOM))
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    # QEMU leaves out the names by which drgn knows a machine.
    platform = drgn.Platform(drgn.Architecture.X86_64)
    program = drgn.Program(platform)
    try:
        program.set_core_dump(path)
        data = program["VMCOREINFO"].string_()
    except Exception as error:  # libkdumpfile's errors have no type of their own
        if "vmcoreinfo" not in str(error):
            raise
        program = drgn.Program(platform, vmcoreinfo=_NO_VMCOREINFO)
        program.set_core_dump(path)
        data = b""
    while True:
        sys.stdout.buffer.write(struct.pack("<Q", len(data)) + data)
        sys.stdout.buffer.flush()
        request = sys.stdin.buffer.read(16)
        if not request:
            return
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        try:
            data = program.read(*struct.unpack("<QQ", request), physical=True)
        except drgn.FaultError:
            data = b""


if __name__ == "__main__":
    main(sys.argv[1])
