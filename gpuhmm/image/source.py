"""What every source of physical memory can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gpuhmm.mm.tables import Words

#: Bytes of a page, the unit in which tables are read.
PAGE = 4096


class MemorySource(ABC):
    """Physical memory, addressed in bytes.

    Nothing is kept of what was read: memory that changes is read as it is at that moment.  Close it, or
    use it in a ``with`` block, where a file lies behind it.
    """

    #: AMD's encryption bit in entries and CR3 (``sme_me_mask``), 0 where there is none.
    sme_mask: int = 0
    #: True for kernels before 4.18.1, which store the PFN of a PROT_NONE entry as it is, not inverted.
    upright_protnone: bool = False
    #: What the kernel's note VMCOREINFO says, by name; empty where there is none.
    vmcoreinfo: Mapping[str, str] = MappingProxyType({})
    #: What to try where memory is missing that should be there; ends an error message.
    hint: str = ""

    @property
    def said_levels(self) -> int | None:
        """Levels of the page tables, 4 or 5, where VMCOREINFO says them."""
        said = self.vmcoreinfo.get("NUMBER(pgtable_l5_enabled)")
        return None if said not in ("0", "1") else 4 + int(said)

    def close(self) -> None:
        """Close what lies behind it; closing twice does nothing."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def read(self, address: int, size: int) -> bytes:
        """Return the ``size`` bytes at ``address``.  MissingMemoryError where any of them is missing."""

    @abstractmethod
    def read_pages(self, pfns: Words) -> tuple[Words, npt.NDArray[np.bool_]]:
        """Return pages of 4 KiB as entries, uint64[n, 512], and whether each is there, bool[n].

        ``pfns`` is uint64[n], in any order.  A page that is missing, in part or whole, reads as zeros.
        """

    @abstractmethod
    def contains(self, addresses: Words) -> npt.NDArray[np.bool_] | None:
        """Return which of ``addresses``, uint64[n], lie in this memory; None if that cannot be told."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what this memory is, for a record of where results came from: JSON's types only."""

    @abstractmethod
    def scan(self) -> Iterator[tuple[int, Words]]:
        """Yield all pages that may hold anything but zeros, by address: the first PFN, uint64[n, 512].

        NotImplementedError where it is not known what there is.
        """

    @property
    @abstractmethod
    def cr3s(self) -> tuple[int, ...]:
        """The CR3 of each processor, where the image says so."""

    @property
    @abstractmethod
    def levels(self) -> int | None:
        """Levels of the page tables, 4 or 5, where the image says so."""
