"""What a file is by its magic: the one table of the formats that are read, and those that are refused."""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """A format: what it is, ``reader`` or what to do about it, and magics, one of which is at ``offset``."""

    what: str
    advice: str
    magics: tuple[bytes, ...]
    offset: int = 0
    reader: str = ""


_UNPACK = "unpack it first"
_RAW = "write the memory anew, with virsh dump --memory-only or QEMU's dump-guest-memory"
_DISK = f"a disk holds no memory of a machine; {_RAW}"
_VMEM = "take the .vmem file beside it, or convert both with vmss2core -N"
_VIRTUALBOX = "start it again and write VBoxManage debugvm NAME dumpvmcore --filename FILE"
_WINDOWS = "only Linux is read: take volatility3 or WinDbg"
_INSIDE = "take a kdump or a LiME image inside the guest"
_EWF = "convert it with ewfexport -f raw"
_AFF4 = "unpack it, or export the memory of AFF4 with aff4imager -e"
_VMWARE_MAGICS = (0xBED0BED0, 0xBED1BED1, 0xBAD1BAD1, 0xBED2BED0, 0xBED2BED2, 0xBED3BED3)

#: Sources: file(1)'s magic database 5.45; dump.h of QEMU; AVML's src/image.rs; qemu_saveimage.h of libvirt;
#: vmware_vmss.h of crash; headers of libewf and of Hyper-V's storage; kernel/power/swap.c of Linux; RFC 1950,
#: 1952 and 8878.
KNOWN = (
    Known("an ELF core", "", (b"\x7fELF",), reader="elf"),
    Known("a LiME image", "", (b"EMiL",), reader="lime"),
    Known("a compressed kdump", "", (b"KDUMP   ", b"makedumpfile\0"), reader="kdump"),
    Known("a diskdump", "only crash reads it: take a kdump or a LiME image", (b"DISKDUMP",)),
    Known("an LKCD dump", "only crash reads it: take a kdump", (b"\xed\x23\x8f\x61\x73\x01\x19\xa8",)),
    Known("an AVML image with compression", "convert it with avml-convert IN OUT", (b"AVML",)),
    Known("a migration stream of QEMU", _RAW, (b"QEVM",)),
    Known("a save file of libvirt", f"virsh restore it, then {_RAW}", (b"LibvirtQemudSave",)),
    Known("an unfinished save file of libvirt", _RAW, (b"LibvirtQemudPart",)),
    Known("a save file of Xen", _INSIDE, (b"Xen saved domain", b"libvirt-xml\n")),
    Known("a core of Xen", _INSIDE, (b"\xed\xeb\x0f\xf0", b"\xee\xeb\x0f\xf0")),
    Known("a saved state of VMware", _VMEM, tuple(m.to_bytes(4, "little") for m in _VMWARE_MAGICS)),
    Known("a saved state of VirtualBox", _VIRTUALBOX, (b"\x7fVirtualBox SavedState",)),
    Known("a saved state of Hyper-V", _INSIDE, (b"\x14\x20\x28\x01",)),
    Known("a qcow2 disk", f"load a state that savevm put into it, then {_RAW}", (b"QFI\xfb",)),
    Known("a VMDK disk", _DISK, (b"KDMV", b"COWD", b"# Disk DescriptorFile")),
    Known("a disk of Hyper-V", _DISK, (b"vhdxfile", b"conectix")),
    Known("a VDI disk", _DISK, (b"\x7f\x10\xda\xbe",), offset=64),
    Known("an EWF image (E01)", _EWF, (b"EVF\t\r\n\xff\0", b"EVF2\r\n\x81", b"LVF\t\r\n\xff\0")),
    Known("an AFF image", "convert it with affconvert -r", (b"AFF10\r\n\0",)),
    Known("a hibernation file of Windows", _WINDOWS, (b"HIBR", b"hibr", b"WAKE", b"wake", b"RSTR")),
    Known("a crash dump of Windows", _WINDOWS, (b"PAGEDU64", b"PAGEDUMP", b"MDMP")),
    Known("a hibernation image of Linux", "resume it, then take a LiME image", (b"S1SUSPEND\0",), 4086),
    Known("a swap area of Linux", "it is no memory of a machine", (b"SWAPSPACE2", b"SWAP-SPACE"), 4086),
    Known("compressed with gzip", _UNPACK, (b"\x1f\x8b\x08",)),
    Known("compressed with xz", _UNPACK, (b"\xfd7zXZ\0",)),
    Known("compressed with zstd", _UNPACK, (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")),
    Known("compressed with bzip2", _UNPACK, (b"BZh",)),
    Known("compressed with lz4", _UNPACK, (b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18")),
    Known("compressed with lzop", _UNPACK, (b"\x89LZO\0\r\n\x1a\n",)),
    Known("compressed with snappy", _UNPACK, (b"\xff\x06\0\0sNaPpY",)),
    Known("compressed with zlib (LiME's compress=1)", _UNPACK, (b"x\x01", b"x\x5e", b"x\x9c", b"x\xda")),
    Known("a zip archive, as AFF4 is", _AFF4, (b"PK\x03\x04", b"PK\x05\x06")),
    Known("a 7z archive", _UNPACK, (b"7z\xbc\xaf\x27\x1c",)),
    Known("a rar archive", _UNPACK, (b"Rar!\x1a\x07",)),
    Known("a tar archive", _UNPACK, (b"ustar",), offset=257),
)

#: As much of a file as the magics need.
HEAD = 4096


def known_format(head: bytes) -> Known | None:
    """Return what a file is that begins with ``head``, HEAD bytes or all it has; None if it may be raw."""
    return next((known for known in KNOWN if head.startswith(known.magics, known.offset)), None)
