"""Driver loops that were recorded in running kernels, replayed on the fault model."""
