"""What UVM does about a page over which processors fight: nothing, hold one of them off, or pin the page.

Processors are the CPU and one GPU.  Source: uvm_perf_thrashing.c:get_hint_for_migration_thrashing,
thrashing_processors_* (NVIDIA UVM 595.45.04).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

CPU = 0
GPU = 1


class HintKind(IntEnum):
    """The kind of a hint (uvm_perf_thrashing_hint_type_t)."""

    NONE = 0
    PIN = 1
    THROTTLE = 2


@dataclass(frozen=True)
class Hint:
    """What to do with a fault on a page.

    PIN: the page goes to ``residency``, and the ``processors`` that fight over it map it there.
    THROTTLE: the faulting processor leaves the page alone until ``until``, in ns.
    """

    kind: HintKind = HintKind.NONE
    residency: int | None = None
    processors: frozenset[int] = frozenset()
    until: int = 0


@dataclass
class PageThrashing:
    """What is known of one page (page_thrashing_info_t); times are in ns, in steps of 64, 0 for never."""

    last_time: int = 0
    migrated: bool = False
    revoked: bool = False
    events: int = 0
    pinned: bool = False
    throttle_end: int = 0
    throttles: int = 0
    processors: set[int] = field(default_factory=set)
    throttled: set[int] = field(default_factory=set)
    pinned_residency: int | None = None
    #: The processor that is not held off in this period (do_not_throttle_processor_id).
    unthrottled: int | None = None


@dataclass(frozen=True)
class Reach:
    """Who can map whose memory: the GPU that of the CPU; ``coherent``: both ways, fast, with atomics."""

    coherent: bool = False

    def can_access(self, processor: int, memory: int) -> bool:
        """Return whether ``processor`` can map the memory of ``memory``."""
        return self.coherent or processor == memory or memory == CPU

    def all_can_access(self, page: PageThrashing, memory: int | None) -> bool:
        """Return whether every processor that fights over the page can map ``memory``."""
        return memory is not None and all(self.can_access(one, memory) for one in page.processors)

    def all_are_fast(self, page: PageThrashing, memory: int) -> bool:
        """Return whether every one of them has a fast link with atomics to ``memory``."""
        return self.coherent or page.processors <= {memory}

    def common_location(self, page: PageThrashing, requester: int) -> int:
        """Return the memory nearest to ``requester`` that all of them can map; its own if there is none."""
        for memory in (requester, CPU + GPU - requester):
            if self.all_can_access(page, memory):
                return memory
        return requester


def migration_hint(
    page: PageThrashing,
    requester: int,
    closest: int,
    preferred: int | None,
    pin_threshold: int,
    reach: Reach,
) -> tuple[HintKind, int | None]:
    """Return kind and residency of the hint for a fault of ``requester`` on a page that thrashes.

    ``closest`` is the nearest processor where the page is; ``preferred`` the preferred location.
    """
    if reach.all_can_access(page, preferred):
        return HintKind.PIN, preferred
    if preferred not in page.processors and reach.all_are_fast(page, closest):
        if closest == CPU and reach.all_can_access(page, requester):
            # The CPU caches what it maps of the GPU: rather there than the other way round.
            return (HintKind.PIN, requester) if requester == GPU else (HintKind.NONE, None)
        return HintKind.PIN, closest
    holds = requester == page.unthrottled
    if page.pinned:
        if requester == preferred:
            stays = holds or page.pinned_residency == preferred
            return (HintKind.PIN, preferred) if stays else (HintKind.THROTTLE, None)
        if holds:
            return HintKind.PIN, reach.common_location(page, requester)
        assert page.pinned_residency is not None
        if reach.can_access(requester, page.pinned_residency):
            return HintKind.PIN, page.pinned_residency
        return HintKind.THROTTLE, None
    if not holds:
        return HintKind.THROTTLE, None
    if page.throttles >= pin_threshold:
        return HintKind.PIN, requester
    return HintKind.NONE, None
