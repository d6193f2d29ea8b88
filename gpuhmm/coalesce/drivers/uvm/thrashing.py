"""How UVM notices that processors fight over pages, and what it remembers of it.

Source: uvm_perf_thrashing.c (NVIDIA UVM 595.45.04): thrashing_event_cb, uvm_perf_thrashing_get_hint,
thrashing_throttle_*, thrashing_pin_page, thrashing_reset_page, adjust_thrashing_lapse,
thrashing_unpin_pages; for the CPU and one GPU.  Times are in ns; 0 stands for never, and pages keep
theirs in steps of 64 ns, as in the driver.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from gpuhmm.coalesce.drivers.uvm.prefetch_tree import BLOCK_PAGES
from gpuhmm.coalesce.drivers.uvm.thrashing_hint import (
    CPU,
    GPU,
    Hint,
    HintKind,
    PageThrashing,
    Reach,
    migration_hint,
)

#: The lapse that the driver adjusts by votes; one that the user set stays.
DEFAULT_LAPSE_US = 500
_MAX_LAPSE_NS = DEFAULT_LAPSE_US * 1000 * 1000
_LAPSE_STEP_NS = _MAX_LAPSE_NS // 10
_MIN_LAPSE_NS = DEFAULT_LAPSE_US // 100 * 1000
_VOTES = 32
_TIMER_NS = 20_000
_MAX_EVENTS = 7  # in 3 bits
_MAX_THROTTLES = 255  # in 8 bits
_NO_HINT = Hint()


class Event(IntEnum):
    """What happened to pages: they moved to a processor, or it lost permissions to them."""

    MIGRATION = 0
    REVOCATION = 1


class Cause(IntEnum):
    """Why pages migrated.  Only the first three can be thrashing; OTHER clears what is known of them."""

    FAULT = 0
    ACCESS_COUNTER = 1
    PREFETCH = 2
    EVICTION = 3
    OTHER = 4


@dataclass(frozen=True)
class ThrashingSettings:
    """The module parameters: nap, epoch and pin are multiples of the lapse; pin 0 is for ever.

    ``lapse_us`` of 500 is adjusted by votes unless ``adjust_lapse`` is False, which is no parameter of the
    driver.  ``coherent``: see :class:`gpuhmm.coalesce.drivers.uvm.thrashing_hint.Reach`.
    """

    threshold: int = 3
    pin_threshold: int = 10
    lapse_us: int = DEFAULT_LAPSE_US
    nap: int = 1
    epoch: int = 2000
    pin: int = 300
    max_resets: int = 4
    adjust_lapse: bool = True
    coherent: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("threshold", 1, _MAX_EVENTS),
            ("pin_threshold", 1, _MAX_THROTTLES),
            ("lapse_us", 1, (1 << 32) - 1),
            ("nap", 1, 100),
            ("epoch", 1, (1 << 32) - 1),
            ("pin", 0, (1 << 32) - 1),
            ("max_resets", 0, (1 << 32) - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be {low} to {high} (got {getattr(self, name)})")


class SpaceThrashing:
    """What an address space knows: its lapse, and the pinned pages of its blocks."""

    def __init__(self, settings: ThrashingSettings | None = None) -> None:
        self.settings = settings or ThrashingSettings()
        self.reach = Reach(self.settings.coherent)
        self.lapse_ns = self.settings.lapse_us * 1000
        # These keep to the first lapse when votes change it.
        self.nap_ns = self.lapse_ns * self.settings.nap
        self.epoch_ns = self.lapse_ns * self.settings.epoch
        self.pin_ns = self.lapse_ns * self.settings.pin
        self.votes = 0
        self.pinned: list[tuple[int, BlockThrashing, int]] = []

    def vote(self, lapse: int) -> None:
        """Let one interval between a thrashing event and the next fault count for the lapse.

        The driver compares its signed count of votes with an unsigned threshold, so that every
        count below 0 passes: each short interval lengthens the lapse by an eighth.  So it does here.
        """
        if self.settings.lapse_us != DEFAULT_LAPSE_US or not self.settings.adjust_lapse:
            return
        self.votes += 1 if lapse >= self.lapse_ns else -1
        self.votes = (self.votes + 128) % 256 - 128  # in 8 bits
        if (self.votes < 0 or self.votes >= _VOTES) and self.lapse_ns < _MAX_LAPSE_NS:
            self.lapse_ns += min(self.lapse_ns // 8, _LAPSE_STEP_NS)
        elif self.votes >= _VOTES and self.lapse_ns > _MIN_LAPSE_NS:
            self.lapse_ns -= max(self.lapse_ns // 8, _MIN_LAPSE_NS)
        else:
            return
        self.votes = -(-self.votes // 2) if self.votes < 0 else self.votes // 2

    def unpin(self, now: int) -> list[tuple[BlockThrashing, int]]:
        """Forget what is known of pages that were pinned long enough, and return them in their order.

        Who calls this takes the mappings away by which others reach them.  A timer does it in the
        driver, at the deadline of the first.
        """
        due = []
        while self.pinned and self.pinned[0][0] <= now + _TIMER_NS:
            _, block, page = self.pinned[0]
            block.reset_page(page)
            due.append((block, page))
        return due


class BlockThrashing:
    """What is known of a VA block and its pages (block_thrashing_info_t)."""

    def __init__(self, space: SpaceThrashing) -> None:
        self.space = space
        #: Nothing is kept by page before two events of different processors within one lapse.
        self.pages: list[PageThrashing] | None = None
        self.resets = 0
        #: Pages pinned ever.  Nothing takes any off, so that a block with one is never reset.
        self.pins = 0
        self.last_processor: int | None = None
        self.last_time = 0
        self.last_thrashing = 0
        self.thrashing: set[int] = set()

    def thrashing_pages(self) -> npt.NDArray[np.bool_]:
        """Return the pages that thrash: bool[512]."""
        mask = np.zeros(BLOCK_PAGES, dtype=np.bool_)
        mask[list(self.thrashing)] = True
        return mask

    def notify(
        self,
        first: int,
        past: int,
        processor: int,
        now: int,
        event: Event = Event.MIGRATION,
        cause: Cause = Cause.FAULT,
    ) -> None:
        """Note that pages ``[first, past)`` migrated to ``processor``, or were revoked from it, at ``now``.

        ValueError for pages outside of the block and other processors.
        """
        _check(first, past, processor)
        settings = self.space.settings
        if event == Event.MIGRATION:
            if cause == Cause.EVICTION:
                return
            if cause == Cause.OTHER:
                self.reset_pages(first, past)
                return
            if (
                cause != Cause.PREFETCH
                and self.pages
                and all(self.pages[p].pinned for p in range(first, past))
            ):
                return  # they move because they are pinned
        if self.pages is None and self._calm(processor, now):
            self.last_time, self.last_processor = now, processor
            return
        if self.pages is None:
            self.pages = [PageThrashing() for _ in range(BLOCK_PAGES)]
        for number in range(first, past):
            page = self.pages[number]
            last = page.last_time
            page.processors.add(processor)
            page.last_time = now & ~63
            if last == 0:
                continue
            if now - last <= self.space.lapse_ns:
                page.events = min(page.events + 1, _MAX_EVENTS)
                if page.events >= settings.threshold:
                    self.thrashing.add(number)
                    self.last_thrashing = now
                page.migrated |= event == Event.MIGRATION
                page.revoked |= event == Event.REVOCATION
            elif page.events >= settings.threshold and not page.pinned:
                self.reset_page(number)
        self.last_time, self.last_processor = now, processor

    def _calm(self, processor: int, now: int) -> bool:
        return (
            self.last_time == 0
            or self.last_processor == processor
            or now - self.last_time > self.space.lapse_ns
        )

    def hint(
        self,
        number: int,
        requester: int,
        now: int,
        resident: Collection[int] = (),
        preferred: int | None = None,
    ) -> Hint:
        """Return what to do about a fault of ``requester`` on page ``number`` at ``now``.

        ``resident`` are the processors where the page is; none stands for the CPU, as for HMM.
        ``preferred`` is the preferred location.  ValueError as for :meth:`notify`.
        """
        _check(number, number + 1, requester)
        if self.pages is None:
            return _NO_HINT
        if (
            self.last_thrashing != 0
            and now - self.last_thrashing > self.space.epoch_ns
            and self.pins == 0
            and self.resets < self.space.settings.max_resets
        ):
            self._reset()
            return _NO_HINT
        page = self.pages[number]
        if page.events < self.space.settings.threshold:
            return _NO_HINT
        if requester in page.throttled:
            if now < page.throttle_end and requester != page.unthrottled:
                return Hint(HintKind.THROTTLE, until=page.throttle_end)
            _end_throttling(page, requester)
        since = now - page.last_time
        self.space.vote(since)
        if since > self.space.lapse_ns and not page.pinned:
            return _NO_HINT
        page.processors.add(requester)
        self._start_period(page, requester, now)
        kind, residency = HintKind.THROTTLE, None
        if not (page.pinned and page.revoked and requester != page.unthrottled):
            other = CPU + GPU - requester
            closest = requester if requester in resident else other if other in resident else CPU
            kind, residency = migration_hint(
                page, requester, closest, preferred, self.space.settings.pin_threshold, self.space.reach
            )
        if kind == HintKind.PIN:
            assert residency is not None
            self._pin(number, page, residency, residency in resident, now)
            return Hint(kind, residency, frozenset(page.processors))
        if kind == HintKind.THROTTLE:
            if requester not in page.throttled:
                page.throttled.add(requester)
                if not page.pinned:
                    page.throttles = min(page.throttles + 1, _MAX_THROTTLES)
            return Hint(kind, until=page.throttle_end)
        return _NO_HINT

    def _start_period(self, page: PageThrashing, requester: int, now: int) -> None:
        """Begin a new period of throttling if the last is over, and choose who is not held off."""
        if now > page.throttle_end:
            page.throttle_end = now + self.space.nap_ns & ~63
            # Nobody goes free in two periods in a row.
            page.unthrottled = None if page.unthrottled == requester else requester
        elif page.unthrottled is None:
            page.unthrottled = requester

    def _pin(self, number: int, page: PageThrashing, residency: int, there: bool, now: int) -> None:
        if not page.pinned or not there:
            for processor in list(page.throttled):
                _end_throttling(page, processor)
        if not page.pinned:
            if self.space.pin_ns > 0:
                self.space.pinned.append((now + self.space.pin_ns, self, number))
            page.throttles = 0
            page.pinned = True
            self.pins += 1
        page.pinned_residency = residency

    def reset_pages(self, first: int, past: int) -> None:
        """Forget what is known of the thrashing pages of ``[first, past)``, as when they are unmapped."""
        for number in sorted(self.thrashing):
            if first <= number < past:
                self.reset_page(number)

    def reset_page(self, number: int) -> None:
        """Forget what is known of a thrashing page, and unpin it; how often it was throttled stays."""
        assert self.pages is not None
        page = self.pages[number]
        for processor in list(page.throttled):
            _end_throttling(page, processor)
        if page.pinned:
            page.pinned = False
            page.pinned_residency = None
            self.space.pinned = [
                item for item in self.space.pinned if item[1] is not self or item[2] != number
            ]
        page.last_time = 0
        page.migrated = page.revoked = False
        page.events = 0
        page.processors.clear()
        self.thrashing.discard(number)

    def _reset(self) -> None:
        self.resets += 1
        self.pages = None
        self.thrashing.clear()
        self.last_processor = None
        self.last_time = self.last_thrashing = 0


def _end_throttling(page: PageThrashing, processor: int) -> None:
    page.throttled.discard(processor)
    if not page.throttled:
        page.throttle_end = 0


def _check(first: int, past: int, processor: int) -> None:
    if not 0 <= first < past <= BLOCK_PAGES:
        raise ValueError(f"pages must be some of {BLOCK_PAGES} (got {first} to {past})")
    if processor not in (CPU, GPU):
        raise ValueError(f"a processor must be {CPU} (CPU) or {GPU} (GPU) (got {processor})")
