"""A machine's memory and what changes address spaces: see ``docs/fault-model.md``."""
