"""Back ends of the walk: modules that each define ``resolver(range_)`` and are imported on first use.

``reference`` follows the kernel's control flow.  ``cpu`` and ``cuda`` resolve every page in parallel
with the decisions of :mod:`gpuhmm.hmm.walk`; :mod:`gpuhmm.hmm.settle` does their faults on the host.
"""
