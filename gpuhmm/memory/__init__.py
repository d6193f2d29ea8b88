"""A machine's memory and what changes address spaces: see ``docs/fault-model.md``.

Operations take the address space first and addresses in bytes; what a kernel would answer with an errno is
returned as one.
"""

from gpuhmm.memory.change_protection import change_prot_numa, mprotect
from gpuhmm.memory.do_madvise import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_HUGEPAGE,
    MADV_HWPOISON,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    madvise,
)
from gpuhmm.memory.dup_mmap import fork
from gpuhmm.memory.gup import access, load, pin_user_pages, store, unpin_user_pages
from gpuhmm.memory.hwpoison import memory_failure
from gpuhmm.memory.invariants import check_invariants
from gpuhmm.memory.migrate import Migration, migrate_pages_end, migrate_pages_start
from gpuhmm.memory.migrate_device import make_device_exclusive_range, migrate_to_device, migrate_to_ram
from gpuhmm.memory.mmap import exit_mmap, munmap
from gpuhmm.memory.pages.device import DeviceMemory
from gpuhmm.memory.pages.filemap import FILE_KINDS, File
from gpuhmm.memory.pages.physical import PhysicalMemory
from gpuhmm.memory.userfaultfd import (
    UFFDIO_REGISTER_MODE_MISSING,
    UFFDIO_REGISTER_MODE_WP,
    userfaultfd_register,
    userfaultfd_unregister,
    userfaultfd_writeprotect,
)
from gpuhmm.memory.vmscan import swap_out

__all__ = [
    "FILE_KINDS",
    "MADV_DONTNEED",
    "MADV_FREE",
    "MADV_HUGEPAGE",
    "MADV_HWPOISON",
    "MADV_NOHUGEPAGE",
    "MADV_PAGEOUT",
    "UFFDIO_REGISTER_MODE_MISSING",
    "UFFDIO_REGISTER_MODE_WP",
    "DeviceMemory",
    "File",
    "Migration",
    "PhysicalMemory",
    "access",
    "change_prot_numa",
    "check_invariants",
    "exit_mmap",
    "fork",
    "load",
    "madvise",
    "make_device_exclusive_range",
    "memory_failure",
    "migrate_pages_end",
    "migrate_pages_start",
    "migrate_to_device",
    "migrate_to_ram",
    "mprotect",
    "munmap",
    "pin_user_pages",
    "store",
    "swap_out",
    "unpin_user_pages",
    "userfaultfd_register",
    "userfaultfd_unregister",
    "userfaultfd_writeprotect",
]
