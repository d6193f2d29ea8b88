"""ELF cores of a whole machine: QEMU's ``dump-guest-memory``, and kdump's /proc/vmcore.

A PT_LOAD says which physical memory it holds in ``p_paddr``; what lies between them is a hole, and what
``p_memsz`` says beyond ``p_filesz`` is zeros.  Notes named QEMU hold the state of each processor, with CR3
and CR4; the note VMCOREINFO is the kernel's own.

Source: System V ABI, chapter 5; target/i386/arch_dump.c of QEMU (QEMUCPUState, version 1);
Documentation/admin-guide/kdump/vmcoreinfo.rst (v6.12).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpuhmm.errors import ImageError
from gpuhmm.image.file import ZEROS, Segment, disjoint
from gpuhmm.image.read_at import ReadAt

_HEADER = struct.Struct("<4sBBBBB7xHHIQQQIHHHHHH")
#: Elf64_Phdr.
_PROGRAM = np.dtype(
    [(name, "<u4") for name in ("type", "flags")]
    + [(name, "<u8") for name in ("offset", "vaddr", "paddr", "filesz", "memsz", "align")]
)
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
#: Notes are read up to this size, all together: some kB for each processor.
_MAX_NOTES = 1 << 24
_MAX_HEADERS = 1 << 20
_USER_END = 1 << 47

#: e_machine of what cores of other machines are (System V ABI's registry).
_MACHINES = {3: "Intel 80386", 21: "PowerPC64", 22: "S/390", 40: "ARM", 183: "AArch64", 243: "RISC-V"}


@dataclass(frozen=True)
class ElfCore:
    """What the headers say: memory, the CR3 of each processor, levels where known, bytes that are missing.

    ``vmcoreinfo`` is what the note of that name says, empty without one.
    """

    segments: list[Segment]
    processors: tuple[int, ...]
    paging_levels: int | None
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
    elf_class, data = fields[1], fields[2]
    kind, machine = struct.unpack_from("<HH" if data == _LITTLE_ENDIAN else ">HH", header, 16)
    phoff, shoff, phentsize, phnum, shnum = fields[10], fields[11], *fields[14:16], fields[17]
    if (elf_class, data, kind, machine) != (_ELFCLASS64, _LITTLE_ENDIAN, _ET_CORE, _EM_X86_64):
        name = "" if machine == _EM_X86_64 else f": {_MACHINES.get(machine, 'another processor')}"
        raise ImageError(
            f"{path} must be an ELF core of a 64-bit x86 machine "
            f"(got class {elf_class}, data {data}, type {kind}, machine {machine}{name})"
        )
    if phnum == _PN_XNUM:
        phnum = _real_phnum(read, shoff, path)
    if not phnum and shnum:
        raise ImageError(
            f"{path} is an ELF core with sections in place of segments, as xl dump-core of Xen writes it: "
            "take a kdump inside the guest, or a LiME image"
        )
    if phentsize != _PROGRAM.itemsize or not 0 < phnum <= _MAX_HEADERS:
        raise ImageError(f"{path}: {phnum} program headers of {phentsize} bytes are none of a core")
    table = read(phoff, phnum * phentsize)
    if len(table) < phnum * phentsize:
        raise ImageError(f"{path} ends within its program headers")
    return _from_headers(np.frombuffer(table, dtype=_PROGRAM), read, size, path)


def _from_headers(headers: np.ndarray, read: ReadAt, size: int, path: str) -> ElfCore:
    loads = headers[headers["type"] == _PT_LOAD]
    in_user_half = (loads["vaddr"] != 0) & (loads["vaddr"] < _USER_END)
    if not loads["paddr"].any() and (len(loads) > 1 or in_user_half.any()):
        raise ImageError(
            f"{path} must be a core of a machine: all its segments say physical address 0, "
            "as in the core of a process"
        )
    segments = []
    truncated = unknown = 0
    for offset, address, filesz, memsz in loads[["offset", "paddr", "filesz", "memsz"]].tolist():
        # QEMU gives memory that it did not write the offset -1.
        if _NO_ADDRESS in (address, offset):
            unknown += 1
            continue
        there = max(min(filesz, size - offset), 0)
        truncated += filesz - there
        if there:
            segments.append(Segment(address, there, offset))
        if memsz > filesz:
            segments.append(Segment(address + filesz, memsz - filesz, ZEROS))
    kept = disjoint(segments)
    notes = []
    if truncated:
        notes.append(f"the file lacks {truncated} bytes of what its headers promise")
    if unknown:
        notes.append(f"{unknown} segments without a physical address or a place in the file were left out")
    if sum(s.size for s in kept) < sum(s.size for s in segments):
        notes.append("some segments hold the same physical memory: the first one counts")
    states, vmcoreinfo = _states_and_vmcoreinfo(headers[headers["type"] == _PT_NOTE], read)
    processors = tuple(dict.fromkeys(cr3 for cr3, _ in states))
    levels = None
    if states:
        levels = 5 if any(cr4 & _CR4_LA57 for _, cr4 in states) else 4
    return ElfCore(kept, processors, levels, truncated, notes, vmcoreinfo)


def _states_and_vmcoreinfo(headers: np.ndarray, read: ReadAt) -> tuple[list[tuple[int, int]], dict[str, str]]:
    """Return CR3 and CR4 of each processor, and what the kernel says of itself."""
    states: list[tuple[int, int]] = []
    vmcoreinfo: dict[str, str] = {}
    left = _MAX_NOTES
    for offset, filesz in headers[["offset", "filesz"]].tolist():
        content = read(offset, min(filesz, left))
        left -= len(content)
        for name, description in _notes(content):
            if name == b"QEMU" and len(description) >= _CR4_OFFSET + 8:
                states.append(struct.unpack_from("<QQ", description, _CR3_OFFSET))
            elif name == b"VMCOREINFO" and not vmcoreinfo:
                vmcoreinfo = parse_vmcoreinfo(description)
    return states, vmcoreinfo


def parse_vmcoreinfo(text: bytes) -> dict[str, str]:
    """Return the lines NAME=VALUE of the kernel's note VMCOREINFO by name."""
    lines = text.decode("ascii", "replace").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _real_phnum(read: ReadAt, shoff: int, path: str) -> int:
    # sh_info of section 0: the type Elf64_Shdr has it at byte 44.
    info = read(shoff + 44, _SECTION_INFO.size)
    if len(info) < _SECTION_INFO.size:
        raise ImageError(f"{path} ends before the section header that counts its program headers")
    return int(_SECTION_INFO.unpack(info)[0])


def _notes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and description of each note; notes that are cut short end the list."""
    at = 0
    while at + 12 <= len(content):
        namesz, descsz, _ = struct.unpack_from("<III", content, at)
        begin = at + 12 + -(-namesz // 4) * 4
        if begin + descsz > len(content):
            return
        yield content[at + 12 : at + 12 + namesz].rstrip(b"\0"), content[begin : begin + descsz]
        at = begin + -(-descsz // 4) * 4
