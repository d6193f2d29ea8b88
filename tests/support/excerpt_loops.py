"""Make tests/data/faults-*.npz: of every recorded scenario a small call that read and one that wrote.

And of every rule of ``gpuhmm.check.recorded.facts`` a small one that needs it.

    python tests/support/excerpt_loops.py tests/data/faults-6.1.npz FOLDER-OF-LOOPS...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from gpuhmm.check.recorded import loops
from gpuhmm.check.recorded.call import RecordedCall
from gpuhmm.check.recorded.facts import FACTS
from gpuhmm.check.recorded.report import check_call
from gpuhmm.mm.handler import FAULT_FLAG_WRITE

#: Named like a part of ``pfn``, but one number a call.
ALONE = "pfn_flags_mask"
GROUPS = ("pfn", "vma", "pt_before", "pt_after", "events", "calls")
#: ``mixed`` has one scenario a layout; a few of them do.
MIXED = ("mixed_s23", "mixed_s34", "mixed_s37", "mixed_s89")


def chosen(file, rules):
    """Return, in order, the cheapest calls of each scenario with read faults and with write faults.

    ``rules`` are names of rules that no call needed so far; those that are met are taken out.
    """
    best = {}
    for index in range(len(file)):
        call = RecordedCall(file, index)
        scenario = str(file.arrays["scenario"][index])
        if not call.faults or (scenario.startswith("mixed") and scenario not in MIXED):
            continue
        wrote = any(fault.b & FAULT_FLAG_WRITE for fault in call.faults)
        cost = len(call.calls) + len(call.events) + len(call.words("in")) // 8
        if rules and cost < 3000:
            for rule in rules & set(check_call(call, "cpu").facts):
                rules.discard(rule)
                best[rule] = 0, index
        key = scenario, wrote
        if len(call.faults) >= 12 and (key not in best or cost < best[key][0]):
            best[key] = cost, index
    return sorted({index for _, index in best.values()})


def main() -> None:
    columns: dict[str, list[np.ndarray]] = {}
    rules = {fact.__name__ for fact in FACTS}
    out = Path(sys.argv[1])
    for path in sorted(path for folder in sys.argv[2:] for path in Path(folder).glob("*.npz")):
        file = loops.load(path)
        wanted = set() if "kernel" in file.arrays else rules  # calls of 6.1 need them all but one
        for index in chosen(file, wanted):
            for name, array in file.arrays.items():
                group = next((g for g in GROUPS if name.startswith(f"{g}_") and name != ALONE), None)
                ragged = group is not None and name != f"{group}_off"
                if not array.ndim:  # one kernel a file
                    columns.setdefault(name, []).append(array[np.newaxis])
                elif ragged:
                    columns.setdefault(name, []).append(file.rows(group, name[len(group) + 1 :], index))
                elif group is not None:
                    columns.setdefault(name, []).append(np.diff(array[index : index + 2]))
                else:
                    columns.setdefault(name, []).append(array[index : index + 1])
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    for group in GROUPS:
        name = f"{group}_off"
        arrays[name] = np.concatenate(([0], np.cumsum(arrays[name])))
    np.savez_compressed(out, **arrays)
    print(f"{out}: {len(arrays['rc'])} calls, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
