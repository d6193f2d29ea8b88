"""Compare a replayed call with the recorded one, point by point.

Frames that the model handed out have other PFNs than those of the kernel; they may be renamed one to one.
Everything else must be the same bit by bit.
"""

from __future__ import annotations

from gpuhmm.check.difference import errno_name, fault_flag_names, hmm_pfn_words, vm_fault_names
from gpuhmm.check.recorded.call import HANDLE_MM_FAULT, Call, Event, RecordedCall
from gpuhmm.check.recorded.replay import FIRST_MODEL_PFN, Replayed
from gpuhmm.hmm.words import HMM_PFN_VALID
from gpuhmm.mm.entry import PFN, P
from gpuhmm.mm.tables import Words

_EVENT_NAMES = ("UNMAP", "CLEAR", "PROT_VMA", "PROT_PAGE", "SOFT_DIRTY", "RELEASE", "MIGRATE", "EXCLUSIVE")

_LEVELS = {1: "pte", 2: "pmd", 3: "pud", 4: "p4d", 5: "pgd"}
_VALID = int(HMM_PFN_VALID)


class Renaming:
    """A bijection between the model's PFNs and the kernel's; recorded PFNs are themselves."""

    def __init__(self) -> None:
        self._to_kernel: dict[int, int] = {}
        self._to_model: dict[int, int] = {}

    def same(self, model: int, kernel: int) -> bool:
        """True if the two may be the same page, given all that were found to be the same so far."""
        if model < FIRST_MODEL_PFN and model != kernel:
            return False
        if self._to_kernel.setdefault(model, kernel) != kernel:
            return False
        return self._to_model.setdefault(kernel, model) == model


def compare(call: RecordedCall, replayed: Replayed) -> list[tuple[str, str]]:
    """Return (point, what differs) for each compared point that is not the same; none if all are."""
    found: list[tuple[str, str]] = []

    def point(name: str, kernel: str, model: str) -> None:
        found.append((name, f"kernel {kernel}, model {model}"))

    for name in ("rc_first", "tries", "rc"):
        kernel, model = call.number(name), getattr(replayed, name)
        if kernel != model:
            words = (str(kernel), str(model)) if name == "tries" else (errno_name(kernel), errno_name(model))
            point(name, *words)
    calls = replayed.calls if call.file.has_walk_returns else _without_walk_returns(replayed.calls)
    at = _first_difference(call.calls, calls)
    if at is not None:
        point("calls", f"{at}: {_call(call.calls, at)}", _call(calls, at))
    at = _first_difference(call.events, replayed.events)
    if at is not None:
        point("events", f"{at}: {_event(call.events, at)}", _event(replayed.events, at))
    first, final = Renaming(), Renaming()
    _compare_words(call, "pfn_first", call.words("first"), replayed.pfn_first, first, point)
    _compare_words(call, "pfn_out", call.words("out"), replayed.pfn_out, final, point)
    _compare_tables(call, replayed, final, point)
    return found


def _compare_words(call, name, kernel: Words, model: Words, renaming: Renaming, point) -> None:  # type: ignore[no-untyped-def]
    flags, profile = call.kernel.hmm_pfn_flags, call.kernel
    for i, (one, two) in enumerate(zip(kernel.tolist(), model.tolist(), strict=True)):
        same = one == two
        if one & two & _VALID and (one ^ two) & flags == 0:
            same = renaming.same(two & ~flags, one & ~flags)
        if not same:
            where = f"[{i}] of va {call.start + (i << 12):#x}"
            point(name, f"{where}: {hmm_pfn_words(kernel[i], profile)}", hmm_pfn_words(model[i], profile))
            return


def _compare_tables(call: RecordedCall, replayed: Replayed, renaming: Renaming, point) -> None:  # type: ignore[no-untyped-def]
    kernel, model = call.after, replayed.after
    for key in sorted(kernel.keys() | model.keys(), key=lambda key: (-key[0], key[1])):
        one, two = kernel.get(key), model.get(key)
        same = one == two
        if one is not None and two is not None and one & two & P and not (one ^ two) & ~PFN:
            same = renaming.same((two & PFN) >> 12, (one & PFN) >> 12)
        if not same:
            words = ["not listed" if entry is None else f"{entry:#x}" for entry in (one, two)]
            point("pt_after", f"{_LEVELS[key[0]]} of {key[1]:#x}: {words[0]}", words[1])
            return


def _without_walk_returns(calls: list[Call]) -> list[Call]:
    return [one if one.kind == HANDLE_MM_FAULT else one._replace(ret=0) for one in calls]


def _first_difference(left: list[Call] | list[Event], right: list[Call] | list[Event]) -> int | None:
    for i, (one, two) in enumerate(zip(left, right, strict=False)):
        if one != two:
            return i
    return None if len(left) == len(right) else min(len(left), len(right))


def _call(calls: list[Call], at: int) -> str:
    if at >= len(calls):
        return "no call"
    kind, a, b, ret = calls[at]
    if kind == HANDLE_MM_FAULT:
        return f"handle_mm_fault({a:#x}, {fault_flag_names(b)}) = {vm_fault_names(ret)}"
    return f"walk_page_range({a:#x}, {b:#x}) = {errno_name(ret)}"


def _event(events: list[Event], at: int) -> str:
    if at >= len(events):
        return "no event"
    start, end, event, attempt = events[at]
    return f"{_EVENT_NAMES[event]} [{start:#x}, {end:#x}) in try {attempt}"
