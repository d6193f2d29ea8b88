"""An address space, Linux's ``mm_struct``: tables, areas, notifiers.  It knows no HMM and no faults."""
