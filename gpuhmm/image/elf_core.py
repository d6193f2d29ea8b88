"""ELF cores of a whole machine: QEMU's ``dump-guest-memory``, and kdump's /proc/vmcore.

A PT_LOAD says which physical memory it holds in ``p_paddr``; what lies between them is a hole.  Notes
named QEMU hold the state of each processor, with CR3 and CR4, one named VMCOREINFO what the kernel says.

Source: System V ABI, chapter 5; target/i386/arch_dump.c of QEMU (QEMUCPUState, version 1);
Documentation/admin-guide/kdump/vmcoreinfo.rst (v6.12).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from gpuhmm.errors import ImageError
from gpuhmm.image.file import Segment, disjoint
from gpuhmm.image.read_at import ReadAt

MAGIC = b"\x7fELF"

_HEADER = struct.Struct("<4sBBBBB7xHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION_INFO = struct.Struct("<I")
_ELFCLASS64, _LITTLE_ENDIAN = 2, 1
_ET_CORE, _EM_X86_64 = 4, 62
_PT_LOAD, _PT_NOTE = 1, 4
#: More program headers than e_phnum can count: the number is in the first section header.
_PN_XNUM = 0xFFFF
_NO_ADDRESS = 0xFFFF_FFFF_FFFF_FFFF

#: Offsets in QEMUCPUState: two words of 32 bits, 18 registers, 10 segments of 24 bytes, then cr[5].
_CR3_OFFSET = 8 + 18 * 8 + 10 * 24 + 3 * 8
_CR4_OFFSET = _CR3_OFFSET + 8
_CR4_LA57 = 1 << 12
#: Notes are read up to this size: some kB for each processor.
_MAX_NOTES = 1 << 28
_MAX_HEADERS = 1 << 22


@dataclass(frozen=True)
class ElfCore:
    """What the headers say: memory, the CR3 of each processor, levels where known, bytes that are missing.

    ``vmcoreinfo`` is what the note of that name says, by name; empty without one.
    """

    segments: list[Segment]
    cr3s: tuple[int, ...]
    levels: int | None
    truncated: int
    notes: list[str]
    vmcoreinfo: dict[str, str]


def parse(read: ReadAt, size: int, path: str) -> ElfCore:
    """Return what the ELF headers say of a file of ``size`` bytes.

    ``read`` is called with offset and size, and returns less at the end of the file.  ImageError for a
    file that is no core of a 64-bit x86 machine.
    """
    header = read(0, _HEADER.size)
    if len(header) < _HEADER.size:
        raise ImageError(f"{path}: an ELF header has {_HEADER.size} bytes (got {len(header)})")
    fields = _HEADER.unpack(header)
    elf_class, data, kind, machine = fields[1], fields[2], fields[6], fields[7]
    phoff, shoff, phentsize, phnum = fields[10], fields[11], fields[14], fields[15]
    if (elf_class, data, kind, machine) != (_ELFCLASS64, _LITTLE_ENDIAN, _ET_CORE, _EM_X86_64):
        raise ImageError(
            f"{path} must be an ELF core of a 64-bit x86 machine "
            f"(got class {elf_class}, data {data}, type {kind}, machine {machine})"
        )
    if phnum == _PN_XNUM:
        phnum = _real_phnum(read, shoff, path)
    if phentsize != _PROGRAM.size or not 0 < phnum <= _MAX_HEADERS:
        raise ImageError(f"{path}: {phnum} program headers of {phentsize} bytes are none of a core")
    table = read(phoff, phnum * _PROGRAM.size)
    if len(table) < phnum * _PROGRAM.size:
        raise ImageError(f"{path} ends within its program headers")
    headers = list(_PROGRAM.iter_unpack(table))
    return _from_headers(headers, read, size, path)


def _from_headers(headers: list[tuple[int, ...]], read: ReadAt, size: int, path: str) -> ElfCore:
    loads = [h for h in headers if h[0] == _PT_LOAD]
    if len(loads) > 1 and not any(h[4] for h in loads):
        raise ImageError(
            f"{path} must be a core of a machine: all its segments say physical address 0, "
            "as in the core of a process"
        )
    segments = []
    truncated = unknown = 0
    for _, _, offset, _, address, filesz, _, _ in loads:
        if address == _NO_ADDRESS:
            unknown += 1
            continue
        there = max(min(filesz, size - offset), 0)
        truncated += filesz - there
        if there:
            segments.append(Segment(address, there, offset))
    kept = disjoint(segments)
    notes = []
    if truncated:
        notes.append(f"the file lacks {truncated} bytes of what its headers promise")
    if unknown:
        notes.append(f"{unknown} segments without a physical address were left out")
    if sum(s.size for s in kept) < sum(s.size for s in segments):
        notes.append("some segments hold the same physical memory: the first one counts")
    said = [
        note
        for kind, _, offset, _, _, filesz, _, _ in headers
        if kind == _PT_NOTE
        for note in _notes(read(offset, min(filesz, _MAX_NOTES)))
    ]
    states = [
        struct.unpack_from("<QQ", description, _CR3_OFFSET)
        for name, description in said
        if name == b"QEMU" and len(description) >= _CR4_OFFSET + 8
    ]
    vmcoreinfo = next((description for name, description in said if name == b"VMCOREINFO"), b"")
    cr3s = tuple(dict.fromkeys(cr3 for cr3, _ in states))
    levels = None
    if states:
        levels = 5 if any(cr4 & _CR4_LA57 for _, cr4 in states) else 4
    return ElfCore(kept, cr3s, levels, truncated, notes, parse_vmcoreinfo(vmcoreinfo))


def _real_phnum(read: ReadAt, shoff: int, path: str) -> int:
    # sh_info of section 0: the type Elf64_Shdr has it at byte 44.
    info = read(shoff + 44, _SECTION_INFO.size)
    if len(info) < _SECTION_INFO.size:
        raise ImageError(f"{path} ends before the section header that counts its program headers")
    return int(_SECTION_INFO.unpack(info)[0])


def _notes(notes: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and description of each note; notes that are cut short end the list."""
    at = 0
    while at + 12 <= len(notes):
        namesz, descsz, _ = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + namesz].rstrip(b"\0")
        begin = at + 12 + -(-namesz // 4) * 4
        at = begin + -(-descsz // 4) * 4
        if at <= len(notes) + 3:
            yield name, notes[begin : begin + descsz]


def parse_vmcoreinfo(text: bytes) -> dict[str, str]:
    """Return the lines NAME=VALUE of the kernel's note VMCOREINFO by name."""
    lines = text.decode("ascii", "replace").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)
