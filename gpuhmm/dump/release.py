"""Which release of Linux the machine ran whose memory we have.

Source: init/version-timestamp.c:linux_banner (v6.1); Documentation/arch/x86/x86_64/mm.rst (v6.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from gpuhmm.dump.raw_tables import RawTables
from gpuhmm.image import MemorySource
from gpuhmm.mm.x86 import U64
from gpuhmm.translation import translate_range

#: linux_banner: the release, who compiled it with what, and when; one line and its end.
_RELEASE = re.compile(r"\d+\.\d+[!-~]{0,64}")
_BANNER = re.compile(rb"Linux version (\d+\.\d+[!-~]{0,64}) \([^\0\n]{1,1024}\n\0")
_LONGEST = 1200

#: Where the kernel's own image is mapped: __START_KERNEL_map, as much as KASLR may use.
_IMAGE_START = 0xFFFF_FFFF_8000_0000
_IMAGE_PAGES = 1 << 18
_CHUNK_PAGES = 1 << 12


def release_of(memory: MemorySource, tables: RawTables | None = None) -> tuple[str, str] | None:
    """Return the release and where it was found, in words; None where nothing says it.

    VMCOREINFO counts first, then the banner of the kernel's own image, which ``tables``
    lead to, then the first banner of the whole memory, if that can be scanned.
    """
    said = memory.vmcoreinfo.get("OSRELEASE", "")
    if _RELEASE.fullmatch(said):
        return said, "OSRELEASE of VMCOREINFO"
    if tables is not None:
        found = _banner(_image(memory, tables))
        if found is not None:
            return found, "banner of its image"
    try:
        found = _banner(pages.tobytes() for _, pages in memory.scan())
    except NotImplementedError:
        return None
    return None if found is None else (found, "first banner in memory")


def _image(memory: MemorySource, tables: RawTables) -> Iterator[bytes]:
    """Yield the kernel's image as it is mapped, missing pages as zeros."""
    mapped = translate_range(tables, _IMAGE_START, _IMAGE_PAGES, backend="cpu")
    pfns = mapped.physical[mapped.mapped] >> U64(12)
    for at in range(0, len(pfns), _CHUNK_PAGES):
        yield memory.read_pages(pfns[at : at + _CHUNK_PAGES])[0].tobytes()


def _banner(chunks: Iterable[bytes]) -> str | None:
    """Return the release of the first banner; it may reach from one chunk into the next."""
    before = b""
    for chunk in chunks:
        text = before[-_LONGEST:] + chunk
        match = _BANNER.search(text)
        if match is not None:
            return match[1].decode()
        before = chunk
    return None
