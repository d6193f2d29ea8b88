"""gpuhmm in other tools, and other tools' memory in gpuhmm; each module imports its tool when it is imported.

The other direction needs no adapter: :func:`gpuhmm.image.as_source` takes any object with
``read(address, size)``, so a volatility3 layer, MemProcFS and drgn can be read from as they are.
"""
