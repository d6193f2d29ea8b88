"""Published measurements of fault coalescing beside what the model gives."""
