"""How drivers coalesce the faults of a device, replayed over the real semantics of HMM."""
