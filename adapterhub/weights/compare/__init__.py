"""Comparisons of adapters: their similarity, and the exact difference of two."""
