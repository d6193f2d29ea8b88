"""What is taken from a capture's outcome because the page tables before the call do not show it.

Every rule is a function of :class:`Given`, listed in FACTS.  It puts the fact into the page state and
returns True if it took one from the outcome; what the tables show by themselves needs no rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpuhmm.check.captured_call import CapturedCall
from gpuhmm.space import AddressSpace


@dataclass(frozen=True)
class Given:
    """A captured call, and the space that is being made ready for its replay."""

    call: CapturedCall
    mm: AddressSpace


Fact = Callable[[Given], bool]

FACTS: list[Fact] = []
