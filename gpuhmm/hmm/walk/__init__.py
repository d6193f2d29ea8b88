"""The decisions of the batch walk, stated once and compiled for the CPU and for CUDA.

``constants`` and ``arrays`` hold what one call consults, ``pte`` decides about one page, ``extent`` cuts an
address range into the pieces that the kernel hands to one callback, ``span`` resolves the pages of
such pieces one after the other.  Back ends only loop over these.
"""
