"""Whether a quantised copy is told to be that of its source, and of no other model."""
