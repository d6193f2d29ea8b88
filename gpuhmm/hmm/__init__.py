"""``hmm_range_fault()``: the request, the decisions, what is done in order, the driver loop."""
