"""Devices that fault: one that runs an access pattern, and one that repeats a recorded trace."""
