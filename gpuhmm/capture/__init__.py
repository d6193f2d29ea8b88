"""What was read of a process, a dump or a snapshot: the record of it, its walk and its summary."""
