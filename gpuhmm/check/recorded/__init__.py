"""Driver loops that were captured in running kernels, replayed on the fault model."""
