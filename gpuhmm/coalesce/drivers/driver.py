"""What a driver of a faulting device is: settings, and a function that serves an interrupt."""

from __future__ import annotations

from typing import Any, Protocol

from gpuhmm.coalesce.service import FaultService


class Driver(Protocol):
    """A driver's policy, with the state that it keeps between the interrupts of a run.

    ``name`` is that of the registry; ``settings`` a frozen dataclass of what can be changed; ``source``
    says which files of which version the rules follow.
    """

    name: str
    source: str
    settings: Any

    def begin(self, service: FaultService) -> None:
        """Begin a run: whatever an earlier one left is forgotten."""
        ...

    def serve(self, service: FaultService) -> None:
        """Serve the interrupt of a fault: at least one batch, and at least one replay if any is stalled."""
        ...
