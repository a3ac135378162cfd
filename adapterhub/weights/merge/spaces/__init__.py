"""Code that merge methods share, by the space in which they work."""
