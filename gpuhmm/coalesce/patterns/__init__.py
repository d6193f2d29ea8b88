"""Access patterns of real kernels, as programs for a modelled GPU."""
