"""Where the recorded calls are: a part in tests/data, larger sets where GPUHMM_VECTORS says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpuhmm.check.difference import differences
from gpuhmm.check.replay import recorded_outcome, replay

DATA = Path(__file__).parent.parent / "data"
CASES = sorted(path for kind in ("core", "rare", "focus", "shstk") for path in DATA.glob(f"{kind}-*.npz"))
FAULTLESS_LOOPS = DATA / "captures-6.1.npz"

#: Files of the larger sets that are no recorded cases, by folder.
LARGE_LOOPS = "kernel-6.1"


def large_sets() -> Path:
    """Return the folder of the larger sets; skip the test where there is none."""
    named = os.environ.get("GPUHMM_VECTORS")
    if not named:
        pytest.skip("the larger sets are not here: set GPUHMM_VECTORS to their folder")
    folder = Path(named)
    assert folder.is_dir(), f"GPUHMM_VECTORS must name a folder (got {named})"
    return folder


def difference_from_record(case, backend):
    """Return in what the back end differs from what is recorded."""
    return differences(case, "the record", recorded_outcome(case), backend, replay(case, backend))
