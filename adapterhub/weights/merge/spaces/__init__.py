"""What merge methods share: the spaces in which they work."""
