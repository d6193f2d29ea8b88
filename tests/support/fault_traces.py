"""Small fault traces with many collisions."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from gpuhmm.coalesce.trace import FaultTrace

#: Addresses of few pages in few blocks: neighbours, block borders, and the highest of all.
ADDRESSES = (0x1000, 0x2000, 0x3000, 0x1FF000, 0x200000, 0x201000, 0x400000, (1 << 56) - 4096)


@st.composite
def fault_traces(draw, longest=60):
    """Faults on a few pages of a few spaces, from a few µTLBs."""
    pages = draw(st.integers(1, len(ADDRESSES)))
    utlbs = draw(st.sampled_from([(0,), (0, 1), (0, 1, 2), (3, 65535)]))
    spaces = draw(st.sampled_from([(0,), (0, 1), (0, 65535)]))
    fault = st.tuples(
        st.sampled_from(ADDRESSES[:pages]),
        st.integers(0, 4),
        st.sampled_from(utlbs),
        st.sampled_from(spaces),
    )
    faults = draw(st.lists(fault, max_size=longest))
    va, access, utlb, space = zip(*faults, strict=True) if faults else ((), (), (), ())
    return FaultTrace.of(va=np.array(va, dtype=np.uint64), access=access, utlb=utlb, space=space)


def random_trace(rng, faults, pages, utlbs, spaces=1):
    """Return uniformly random faults."""
    return FaultTrace.of(
        va=rng.integers(0, pages, faults).astype(np.uint64) << np.uint64(12),
        access=rng.integers(0, 5, faults),
        utlb=rng.integers(0, utlbs, faults),
        space=rng.integers(0, spaces, faults),
    )
