"""Running several threads against each other for a while.

``GPUHMM_STRESS_SECONDS`` says how long each test that does so takes in all, 60 without it.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter

from spaces import BASE, anonymous

import gpuhmm

SECONDS = float(os.environ.get("GPUHMM_STRESS_SECONDS", "60"))
STUCK = 60.0  # seconds after the end at which a thread is taken for stuck


def load_kernels():
    """Compile or load what the cpu back end runs, before the time starts."""
    npages = 8192
    mm = anonymous(npages)
    for end in (BASE + 4096, BASE + npages * 4096):
        gpuhmm.range_fault(mm, BASE, end, request="read", backend="cpu")


def run(threads, seconds):
    """Call each function again and again, in a thread of its own, for a while; return what they counted.

    A function gets a random number generator and a Counter.  The first exception ends all.
    """
    load_kernels()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)  # CPython's 5 ms would let most steps run undisturbed
    try:
        return _run(threads, time.monotonic() + seconds)
    finally:
        sys.setswitchinterval(interval)


def _run(threads, deadline):
    failures = []
    counted = []

    def loop(number, step):
        rng, mine = random.Random(number), Counter()
        try:
            while time.monotonic() < deadline and not failures:
                step(rng, mine)
        except BaseException as caught:
            failures.append(caught)
        counted.append(mine)

    started = [threading.Thread(target=loop, args=item, daemon=True) for item in enumerate(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(max(deadline - time.monotonic(), 0) + STUCK)
        assert not thread.is_alive(), "a thread is stuck"
    if failures:
        raise failures[0]
    return sum(counted, Counter())
